"""The settings of a linear probe."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mapet.errors import SettingsError
from mapet.evaluation.probes.linear_heads import Candidate
from mapet.evaluation.protocol import Protocol
from mapet.evaluation.supervised.length import describe_extended_schedule
from mapet.evaluation.validation_split import values_of

_Count = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[float, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class LinearSettings(Protocol):
    """Settings of all presets (`mapet protocols linear`).

    Args:
        pool: "mean", "cls" or "both".
        layers: "last", behind the final norm, or "every" raw block output with a linear layer of its own.
        augment: Random resized crops and flips in every epoch; otherwise features are extracted once.
        crop_fraction: Share of the shorter side that is seen of a test image; 1 is the view of the pre-training.
        normalise: "standardise" by mean and deviation of the training images, "batch_norm" without affine part, or "none".
        optimizer: "adamw" or "lars".
        epochs: Passes over the training images.
        min_steps: At least so many steps are taken, in more epochs where there are few images.
        warmup_epochs: Linear, from 0.
        schedule: Whether the cosine to 0 moves with every "step" or every "epoch".
        batch_size: Images a step; all of them where there are fewer.
        lr: At its highest, absolute; several are candidates.
        weight_decay: On the weight and not on the bias; several are candidates.
        init_std: Deviation of the weights at the start.
        choose: Among several candidates, by a "held_out" part of the training images; or, optimistic, as the best layer and
            epoch on "test".
        held_out_share: Of every class.
        seed: Of order, augmentation, start and held-out part.

    Raises:
        SettingsError: Settings do not go together.
    """

    name: ClassVar[str] = "linear"
    several_processes: ClassVar[bool] = True
    version: ClassVar[int] = 2

    layers: Literal["last", "every"] = "last"
    augment: bool = False
    crop_fraction: _Share = 1.0
    normalise: Literal["standardise", "batch_norm", "none"] = "standardise"
    optimizer: Literal["adamw", "lars"] = "adamw"
    epochs: _Count = 50
    min_steps: _Count = 1000
    warmup_epochs: _NotNegative = 0.0
    schedule: Literal["step", "epoch"] = "step"
    batch_size: _Count = 1024
    lr: _Positive | tuple[_Positive, ...] = 4e-3
    weight_decay: _NotNegative | tuple[_NotNegative, ...] = 1e-4
    init_std: _NotNegative = 0.0
    choose: Literal["held_out", "test"] = "held_out"
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "lars" and self.layers == "every":
            raise SettingsError("LARS scales a step by the norm of one linear layer. Use optimizer=adamw with layers=every.")
        if self.normalise == "batch_norm" and self.batch_size < 2:
            raise SettingsError("batch_norm compares the images of a batch, and batch_size is 1; allowed with it: 2 or more.")

    @property
    def candidates(self) -> list[Candidate]:
        """All pairs of a learning rate and a weight decay."""
        return [Candidate(*pair) for pair in product(values_of(self.lr), values_of(self.weight_decay))]

    @property
    def with_random(self) -> bool:
        """Not where every epoch passes the backbone again."""
        return not self.augment

    def note(self, train_images: int) -> str:
        """A line if the training has more epochs because there are few images."""
        return describe_extended_schedule(train_images, self.batch_size, self.epochs, self.min_steps, self.warmup_epochs)
