"""A backbone by its address, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapet.compat import VisionTransformer, resolve_model_data_config
from mapet.errors import ModelError
from mapet.models.backbone import create_backbone, image_size
from mapet.models.saved import BackboneRecipe, load_backbone
from mapet.runtime.run_directory import RunDirectory

RANDOM, TIMM = "random:", "timm:"


@dataclass(frozen=True)
class OpenedBackbone:
    """A backbone, how it is fed, and where it comes from.

    Args:
        backbone: In evaluation mode on the CPU.
        recipe: How to build it again, at random initialisation, and how to feed it.
        title: What to call it.
        run: The pre-training that it is the result of, if there is one here.
        untrained: It is at its random initialisation.
    """

    backbone: VisionTransformer
    recipe: BackboneRecipe
    title: str
    run: RunDirectory | None = None
    untrained: bool = False


def open_backbone(address: str | Path, *, options: dict[str, Any] | None = None) -> OpenedBackbone:
    """Opens the backbone at `address`.

    Args:
        address: A run directory, or a folder with a saved backbone; "timm:NAME" for timm's weights (downloaded by timm),
            "random:NAME" for a timm model at its random initialisation.
        options: Keyword arguments of `timm.create_model` for the last two.

    Raises:
        ModelError: There is none, or it is not what was written.
    """
    text = str(address)
    for prefix in (RANDOM, TIMM):
        if text.startswith(prefix):
            return _by_name(text.removeprefix(prefix), prefix, options or {})
    path = Path(address)
    if (path / "config.json").is_file() and not (path / "model.json").is_file():
        run = RunDirectory.existing(path)
        return OpenedBackbone(*load_backbone(run.backbone), title=text, run=run)
    if not path.exists():
        raise ModelError(
            f"There is no backbone at {path}. Give a run directory (the --out of `mapet pretrain`), timm:NAME for timm's weights, "
            "or random:NAME for a random initialisation."
        )
    return OpenedBackbone(*load_backbone(path), title=text)


def _by_name(name: str, prefix: str, options: dict[str, Any]) -> OpenedBackbone:
    options = {"num_classes": 0, **options}
    backbone = create_backbone(name, **options, pretrained=prefix == TIMM)
    data = resolve_model_data_config(backbone)
    height, _ = image_size(backbone)
    recipe = BackboneRecipe(name, options, height, data["mean"], data["std"], seed=0)
    if prefix == RANDOM:
        backbone = recipe.build()
    return OpenedBackbone(backbone.eval(), recipe, f"{prefix}{name}", untrained=prefix == RANDOM)
