"""Writes a backbone in forms that others read, and checks that what they compute is what it computes.

timm         config.json and model.safetensors, for timm.create_model("local-dir:FOLDER") or "hf-hub:OWNER/NAME"
hf           a model of transformers, with the configuration of its image processor
safetensors  the state dict under timm's names, and what timm needs to build the model
onnx         model.onnx, for any number of images

Every export holds a model card, README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mapet.checkpoints.address import LoadedBackbone
from mapet.compat import VisionTransformer
from mapet.errors import FailedRunError, ModelError
from mapet.export.card import model_card
from mapet.models.backbone import image_size, normed_tokens
from mapet.registry import Registry
from mapet.runtime.files import atomic_directory
from mapet.runtime.lock import only_writer
from mapet.runtime.seeding import seeded_generator


@dataclass(frozen=True)
class Written:
    """What a writer put into the folder.

    Args:
        library: That reads it, as the Hub names it.
        usage: Lines of Python that load it; FOLDER stands for the folder.
        difference: Largest difference of its outputs from those of the backbone; None where that could not be measured.
        notes: What was changed on the way, each a sentence.
    """

    library: str
    usage: str
    difference: float | None
    notes: tuple[str, ...] = ()


Writer = Callable[[LoadedBackbone, Path], Written]
FORMATS: Registry[Writer] = Registry(
    "export format",
    {
        "timm": "mapet.export.timm:write",
        "hf": "mapet.export.hf:write",
        "safetensors": "mapet.export.safetensors:write",
        "onnx": "mapet.export.onnx:write",
    },
)
TOLERANCE = {"hf": 1e-4, "onnx": 1e-4}


def export(loaded: LoadedBackbone, form: str, folder: Path) -> Written:
    """Writes `loaded` into a new folder, with a model card.

    Args:
        loaded: The backbone.
        form: A name of `FORMATS`.
        folder: Made here; it must not exist yet or be empty.

    Raises:
        ModelError: The form cannot express the backbone, or the folder is in use.
        InUseError: Another process writes the folder.
        FailedRunError: What was written does not compute what the backbone computes.
    """
    FORMATS.get(form)  # a wrong name is refused before anything is written
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is there already, and nothing is written over. Give --out a new folder, or remove that one.")
    with only_writer(folder), atomic_directory(folder) as partial:
        written = FORMATS.create(form, loaded, partial)
        _check(written, form)
        facts = {"library": written.library, "usage": written.usage, "notes": written.notes, "difference": written.difference}
        (partial / "README.md").write_text(model_card(loaded, **facts), encoding="utf-8")
    return written


def _check(written: Written, form: str) -> None:
    allowed = TOLERANCE.get(form, 0.0)
    if written.difference is not None and not written.difference <= allowed:
        raise FailedRunError(
            f"The outputs of the export differ from the backbone's by {written.difference:.1e}, more than {allowed:.0e}. Nothing "
            "was kept. Please report this with the model's name and options."
        )


def sample_images(backbone: VisionTransformer, count: int = 2) -> Tensor:
    """Images (count, 3, H, W) of Gaussian noise, to compare outputs with."""
    return torch.randn(count, 3, *image_size(backbone), generator=seeded_generator(0, "export"))


class Outputs(nn.Module):
    """What an export has to compute: logits (B, classes) with a classifier, else the tokens behind the final norm (B, N, D)."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifies = backbone.num_classes > 0
        self.name = "logits" if self.classifies else "tokens"

    def forward(self, images: Tensor) -> Tensor:
        """From images (B, 3, H, W), normalised."""
        return self.backbone(images) if self.classifies else normed_tokens(self.backbone, images)


@torch.inference_mode()
def largest_difference(backbone: VisionTransformer, theirs: Callable[[Tensor], Tensor]) -> float:
    """Between the outputs of a backbone and another implementation's, over noise; relative where outputs exceed 1."""
    images = sample_images(backbone)
    ours = Outputs(backbone)(images)
    return float(((ours - theirs(images)).abs() / ours.abs().clamp(min=1)).max())
