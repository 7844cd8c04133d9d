"""A run directory as pre-training leaves it, as far as its backbone goes."""

from __future__ import annotations

from pathlib import Path

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.models.spec import BackboneSpec
from mapet.runtime.run_directory import RunDirectory

SPEC = BackboneSpec(
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "init_values": 0.1, "num_classes": 0},
    image_size=32,
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.6, 0.7),
    seed=3,
)


def save_run(path: Path) -> Path:
    """A run at `path` whose backbone is at its random initialisation."""
    save_backbone(RunDirectory(path).backbone, SPEC, SPEC.build())
    return path
