"""The smallest backbone and images that a fine-tuning runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.evaluation.finetuning.protocol import FineTune
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.models.spec import BackboneSpec
from tests.tiny import LOCATION

CPU = torch.device("cpu")
OPTIONS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 0.1, "num_classes": 0, "img_size": 16}
EVERYTHING: dict[str, Any] = {
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.5,
    "drop_path": 0.3,
    "clip_norm": 1.0,
    "ema": 0.8,
}


def tiny_spec(**options: Any) -> BackboneSpec:
    return BackboneSpec("vit_tiny_patch16_224", OPTIONS | options, 16, IMAGENET_MEAN, IMAGENET_STD, seed=5)


def tiny_frozen(folder: Path | None = None, workers: int = 0, spec: BackboneSpec | None = None, limit: int = 0) -> FrozenBackbone:
    """40 dark and bright images to learn from, 20 to be judged on."""
    spec = spec or tiny_spec()
    sources = [open_source(LOCATION, split) for split in ("train", "test")]
    unreadable = UnreadableImages(limit)
    frozen = FrozenBackbone("tiny", spec.build(), spec, *sources, device=CPU, workers=workers, unreadable=unreadable)
    frozen.folder = folder
    return frozen


def quick(**settings: Any) -> FineTune:
    return FineTune(**{"epochs": 2, "batch_size": 8, "lr": 2e-3, "warmup_epochs": 0.5, **settings})
