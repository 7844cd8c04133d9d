"""Features of a backbone that a run of our own has pre-trained: tokens of a second round."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mapet.checkpoints.backbone_folder import read_backbone
from mapet.config.architecture import check_architecture
from mapet.errors import TokenizerError
from mapet.models.backbone import create_backbone, patch_size
from mapet.runtime.run_directory import RunDirectory
from mapet.tokenizers.features.network import NetworkFeatures


class RunFeatures(NetworkFeatures):
    """The patch tokens of a run's backbone. The tokenizer keeps the weights: the run may be deleted afterwards.

    Args:
        image_size: Height and width of its images in pixels; positions are resampled if the run had another one.
        patch_size: Height and width of a patch: that of the backbone.
        run: The run directory, for a new tokenizer.
        backbone: How timm builds it and what its images are normalised by, where the weights come from elsewhere.
        layer: The block whose tokens are taken, negative ones counted from the end; by default the last.

    Raises:
        ModelError: The run has no backbone, or a damaged one.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        run: str | None = None,
        backbone: dict[str, Any] | None = None,
        layer: int | None = None,
    ) -> None:
        network = None
        if run is not None:
            network, spec = read_backbone(RunDirectory(run).backbone)
            backbone = {"name": spec.name, "options": spec.options, "mean": list(spec.mean), "std": list(spec.std)}
        if backbone is None:
            raise TokenizerError("Features of a run need the run: give its folder, or 'run:FOLDER'.")
        _check_spec(backbone)
        build = partial(create_backbone, backbone["name"], **backbone["options"])
        super().__init__(image_size, patch_size, run or "the run", build, backbone["mean"], backbone["std"], layer)
        self.spec = backbone
        if network is not None:
            self.backbone = self.prepared(network)

    def settings(self) -> dict[str, Any]:
        """What `create_features` needs to build it again; where the run lay does not matter then."""
        return {"name": "run", "backbone": self.spec, **self.layer_settings()}

    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Nothing: the weights came with the run."""


def _check_spec(backbone: Mapping[str, Any]) -> None:
    """Refuses a description of a backbone (it may come from anybody's tokenizer.json) with other entries than `settings` writes."""
    if backbone.keys() != {"name", "options", "mean", "std"} or not isinstance(backbone["name"], str):
        raise TokenizerError(f"The features of a run need name, options, mean and std of its backbone, not {backbone!r:.120}.")
    check_architecture(backbone["options"], TokenizerError, "The options of the run's backbone")
    for name in ("mean", "std"):
        if not (
            isinstance(backbone[name], list) and len(backbone[name]) == 3 and all(type(x) in (int, float) for x in backbone[name])
        ):
            raise TokenizerError(f"The {name} of the run's backbone is {backbone[name]!r:.80}, not three numbers.")


def sizes_of(run: str) -> tuple[int, int]:
    """Image and patch size of a run's backbone, in pixels.

    Raises:
        ModelError: It has none.
    """
    network, spec = read_backbone(RunDirectory(run).backbone)
    return spec.image_size, patch_size(network)
