"""Exports for timm: the form in which timm keeps its models on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from PIL import Image
from torch import Tensor

from mapet.checkpoints.address import LoadedBackbone
from mapet.compat import VisionTransformer, create_transform, resolve_model_data_config, timm
from mapet.export.export import Outputs, Written, largest_difference
from mapet.export.preprocessing import check_preprocessing
from mapet.models.backbone import image_size
from mapet.models.weights import load_strictly
from mapet.runtime.files import write_json
from mapet.runtime.tensors import load_tensors, write_tensors

_USAGE = """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # "hf-hub:OWNER/NAME" once it is pushed"""


def write(loaded: LoadedBackbone, folder: Path) -> Written:
    """Writes model.safetensors and config.json, and loads them again through `timm.create_model`, strictly.

    Raises:
        FailedRunError: timm's transform of images gives other pixels than `EvaluationView`.
    """
    backbone, spec = loaded.backbone, loaded.spec
    write_tensors(folder / "model.safetensors", backbone.state_dict(), {"format": "pt"})
    architecture = spec.name.partition(".")[0]
    data = {
        "input_size": [3, *image_size(backbone)],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": spec.crop_fraction,
        "crop_mode": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "num_classes": backbone.num_classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    config = {
        "architecture": architecture,
        "num_classes": backbone.num_classes,
        "num_features": backbone.num_features,
        "global_pool": backbone.global_pool,
        "model_args": spec.options,
        "pretrained_cfg": data,
    }
    labels = {"label_names": list(loaded.classes)} if loaded.classes else {}
    write_json(folder / "config.json", config | labels)
    again = cast(VisionTransformer, timm.create_model(f"local-dir:{folder}", pretrained=True)).eval()
    load_strictly(again, load_tensors(folder / "model.safetensors"))
    transform = create_transform(**resolve_model_data_config(again), is_training=False)
    check_preprocessing(spec, cast(Callable[[Image.Image], Tensor], transform))
    return Written("timm", _USAGE, largest_difference(backbone, Outputs(again)))
