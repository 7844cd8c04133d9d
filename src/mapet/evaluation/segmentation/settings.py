"""The settings of a segmentation; by default those of Table 10 of the MaPeT paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mapet.errors import SettingsError
from mapet.evaluation.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(Protocol):
    """How UperNet is trained and tested.

    Args:
        steps: Optimizer steps.
        batch_size: Images a step; all where there are fewer.
        lr: Behind the warm-up, for heads and rescalings; falls in a straight line to 0.
        warmup_steps: From a millionth of `lr`.
        layer_decay: Factor on the learning rate from one block to the one below.
        weight_decay: Of AdamW.
        drop_path: Of the last block.
        crop: Side of crops and windows in pixels.
        stride: From one window to the next when testing.
        scale: Longest and shortest side that images are resized to fit.
        ratio: Range of a factor on `scale` in training.
        max_class_share: Of one class in a crop.
        blocks: Four blocks whose features are used, from 0; by default the published ones (3, 5, 7, 11 of 12).
        channels: Width of the head; 0 is that of the backbone.
        aux_channels: Width of the auxiliary head.
        aux_weight: Of its loss.
        dropout: Before the last layer of both heads.
        published_denominator: Divide the loss by all pixels, ignored ones included, as the published code does.
        precision: "fp32" or "bf16" (autocast).
        seed: Of initial weights, order, augmentation, drop path and dropout.

    Raises:
        SettingsError: A value is not allowed.
    """

    steps: int = 160_000
    batch_size: int = 16
    lr: float = 5e-5
    warmup_steps: int = 1500
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    drop_path: float = 0.15
    crop: int = 512
    stride: int = 341
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    blocks: tuple[int, ...] | None = None
    channels: int = 0
    aux_channels: int = 256
    aux_weight: float = 0.4
    dropout: float = 0.1
    published_denominator: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 2,
            "lr": self.lr > 0,
            "warmup_steps": 0 <= self.warmup_steps <= self.steps,
            "layer_decay": 0 < self.layer_decay <= 1,
            "weight_decay": self.weight_decay >= 0,
            "drop_path": 0 <= self.drop_path < 1,
            "stride": 1 <= self.stride <= self.crop,
            "scale": self.scale[0] >= self.scale[1] >= 1,
            "ratio": 0 < self.ratio[0] <= self.ratio[1],
            "max_class_share": 0 < self.max_class_share <= 1,
            "channels": self.channels >= 0,
            "aux_channels": self.aux_channels >= 1,
            "aux_weight": self.aux_weight >= 0,
            "dropout": 0 <= self.dropout < 1,
        }.items():
            if not allowed:
                raise SettingsError(f"segment: {name} = {getattr(self, name)} is not allowed; {_ALLOWED[name]}.")

    def follow(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Stride and scale keep their proportion to the crop; a warm-up longer than the steps given becomes a tenth of them."""
        followed: dict[str, Any] = {}
        steps, crop = overrides.get("steps"), overrides.get("crop")
        if isinstance(steps, int) and steps < self.warmup_steps:
            followed["warmup_steps"] = steps // 10
        if isinstance(crop, int) and crop > 0:
            followed["stride"] = max(1, round(self.stride * crop / self.crop))
            followed["scale"] = tuple(max(1, round(side * crop / self.crop)) for side in self.scale)
        return followed


_ALLOWED = {
    "steps": "1 or more",
    "batch_size": "2 or more, as batch norm compares images",
    "lr": "above 0",
    "warmup_steps": "0 up to the number of steps (set warmup_steps too where you set few steps)",
    "layer_decay": "above 0, at most 1",
    "weight_decay": "0 or more",
    "drop_path": "0 or more, below 1",
    "stride": "1 up to the crop",
    "scale": "the longest side first, then the shortest, both 1 or more",
    "ratio": "two factors above 0, the smaller one first",
    "max_class_share": "above 0, at most 1",
    "channels": "0 (the backbone's width) or more",
    "aux_channels": "1 or more",
    "aux_weight": "0 or more",
    "dropout": "0 or more, below 1",
}
