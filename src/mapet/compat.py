"""timm, imported so that it works beside a torchvision built for another torch.

A torchvision wheel built against CUDA dies beside a CPU build of torch with `operator torchvision::nms does not exist`, and takes
timm with it. Its image operators are not used here, so declaring the two schemas that it looks up is enough; that is done only
when the plain import fails. Modules that need timm write `from mapet.compat import timm`.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None


def import_torchvision() -> bool:
    """Imports torchvision; returns whether the missing operators had to be declared first."""
    global _library
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    _library.define(f"nms{_SCHEMA}")
    _library.define(f"qnms{_SCHEMA}")
    importlib.import_module("torchvision")
    return True


DECLARED_OPERATORS = import_torchvision()

import timm  # noqa: E402  (only importable once torchvision is)
from timm.data.config import resolve_model_data_config  # noqa: E402
from timm.data.imagenet_info import ImageNetInfo  # noqa: E402
from timm.data.mixup import Mixup, mixup_target  # noqa: E402
from timm.data.random_erasing import RandomErasing  # noqa: E402
from timm.data.transforms_factory import create_transform  # noqa: E402
from timm.layers.attention import Attention  # noqa: E402
from timm.layers.attention_pool import AttentionPoolLatent  # noqa: E402
from timm.layers.drop import DropPath  # noqa: E402
from timm.layers.layer_scale import LayerScale  # noqa: E402
from timm.layers.pos_embed import resample_abs_pos_embed  # noqa: E402
from timm.models import checkpoint_seq  # noqa: E402
from timm.models.beit import Beit  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402
from timm.optim import param_groups_weight_decay  # noqa: E402  # pyright: ignore[reportPrivateImportUsage]
from timm.optim.lars import Lars  # noqa: E402
from timm.utils.model_ema import ModelEmaV3  # noqa: E402

__all__ = [
    "DECLARED_OPERATORS",
    "Attention",
    "AttentionPoolLatent",
    "Beit",
    "Block",
    "DropPath",
    "ImageNetInfo",
    "Lars",
    "LayerScale",
    "Mixup",
    "ModelEmaV3",
    "RandomErasing",
    "VisionTransformer",
    "checkpoint_seq",
    "create_transform",
    "import_torchvision",
    "mixup_target",
    "param_groups_weight_decay",
    "resample_abs_pos_embed",
    "resolve_model_data_config",
    "timm",
]
