"""The settings of a fine-tuning; the presets in protocols/finetune.yaml have the sources of their values."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mapet.data.augmentation import INTERPOLATIONS, check_rand_augment
from mapet.data.regions import check_scale
from mapet.errors import SettingsError, nearest
from mapet.evaluation.protocol import Protocol

MECHANICS = ("micro_batch", "evaluate_every")
_SHARES = ("drop_path", "smoothing", "mix_prob", "mix_switch", "erasing")  # 0 to 1
_POSITIVE = ("epochs", "batch_size", "lr", "eps", "evaluate_every", "crop_fraction")
_NOT_NEGATIVE = ("min_steps", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "color_jitter", "mixup", "cutmix")
_POSITIVE_IF_SET = ("clip_norm", "image_size", "head_init_scale", "micro_batch")


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings(Protocol, ABC):
    """Everything that changes what is learned, and two settings that do not: `micro_batch` and `evaluate_every` are not hashed.

    Args:
        pool: "mean": patches are averaged, then a new LayerNorm, then the head; the backbone's last norm is dropped. "cls": the
            class token behind the backbone's last norm.
        epochs: Passes over the training images.
        min_steps: At least so many steps are taken, in more epochs where there are few images; warm-up grows alike.
        batch_size: Images a step; all of them where there are fewer.
        lr: Behind the warm-up, for this batch size; a cosine takes it to `min_lr`, step by step.
        min_lr: At the end.
        warmup_lr: At the first step.
        warmup_epochs: Linear warm-up.
        layer_decay: Block i of L, i from 0, has the rate lr * layer_decay^(L - i), the embeddings lr * layer_decay^(L + 1); None
            for the same rate everywhere.
        weight_decay: Of AdamW; not on vectors, position embeddings and the class token.
        betas: Of AdamW.
        eps: Of AdamW.
        clip_norm: Gradients are scaled down to this norm; None for no limit.
        drop_path: Stochastic depth of the last block; linear from 0.
        smoothing: Of the labels.
        rand_augment: In timm's notation; None for none.
        color_jitter: Has no effect beside RandAugment, as in timm.
        crop_scale: Smallest and largest share of the area of random crops.
        flip: Whether half of the images are mirrored.
        interpolation: Of random crops.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none.
        mix_prob: Share of batches that are mixed.
        mix_switch: Share of those that get cutmix rather than mixup, where there are both.
        erasing: Share of images of which a rectangle is replaced by noise.
        ema: Decay of a moving average of the weights that is evaluated too; None for none.
        image_size: Pixels; by default the backbone's. Position embeddings are resized.
        crop_fraction: Of the test images: shorter side to image_size / crop_fraction, then the central square.
        head_init_scale: The head starts at a normal distribution of 0.02 times this.
        precision: "fp32", or "bf16" for matrix products under autocast.
        seed: Of head, order, augmentation, mixing and drop path.
        micro_batch: Images per forward pass, to save memory.
        evaluate_every: Epochs between tests during the training, which do not affect it; more where `min_steps` adds some.

    Raises:
        SettingsError: A setting has a value that is not allowed.
    """

    allowed_pools: ClassVar[tuple[str, ...]] = ("mean", "cls")

    pool: str = "mean"
    scratch: bool = False
    epochs: float = 10
    min_steps: int = 0
    batch_size: int = 64
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    warmup_epochs: float = 1
    layer_decay: float | None = 0.75
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    drop_path: float = 0.1
    smoothing: float = 0.1
    rand_augment: str | None = None
    color_jitter: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    interpolation: str = "bicubic"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch: float = 0.5
    erasing: float = 0.0
    ema: float | None = None
    image_size: int | None = None
    crop_fraction: float = 0.9
    head_init_scale: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    micro_batch: int | None = None
    evaluate_every: float = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rand_augment(self.rand_augment)
        check_scale(self.crop_scale)
        if self.interpolation not in INTERPOLATIONS:
            raise SettingsError(f"There is no interpolation '{self.interpolation}'. {nearest(self.interpolation, INTERPOLATIONS)}")
        self._check_numbers()
        if self.mixes and self.batch_size < 2:
            raise SettingsError(
                f"mixup and cutmix mix the images of a batch in pairs, and batch_size is {self.batch_size}; allowed with them: "
                "2 or more. Set a larger batch_size, or mixup=0 and cutmix=0."
            )
        if self.warmup_epochs >= self.epochs:
            raise SettingsError(
                f"The warm-up of {self.warmup_epochs} epochs would not end within the {self.epochs} epochs. Set warmup_epochs "
                "lower too, for example to a tenth of them."
            )

    def _check_numbers(self) -> None:
        """Refuses numbers out of their range."""
        ranges = [
            (_SHARES, lambda value: 0 <= value <= 1, "0 to 1"),
            (_POSITIVE, lambda value: value > 0, "above 0"),
            (_NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
            (_POSITIVE_IF_SET, lambda value: value is None or value > 0, "above 0, or null"),
            (("layer_decay", "ema"), lambda value: value is None or 0 < value <= 1, "above 0, to 1, or null"),
            (("crop_fraction",), lambda value: value <= 1, "at most 1"),
            (("betas",), lambda values: all(0 <= value < 1 for value in values), "two numbers from 0 to below 1"),
        ]
        for names, allowed, words in ranges:
            for name in names:
                if not allowed(getattr(self, name)):
                    raise SettingsError(f"{name} is {getattr(self, name)}; allowed: {words}.")
        if self.drop_path == 1 or self.smoothing == 1:
            raise SettingsError("drop_path and smoothing must stay below 1: nothing would be left to learn from.")

    def describe(self) -> dict[str, Any]:
        """Name, version and every setting but the mechanics."""
        unsaid = MECHANICS if self.scratch else (*MECHANICS, "scratch")
        return {name: value for name, value in super().describe().items() if name not in unsaid}

    def follow(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """A warm-up that would not end within the epochs given becomes a tenth of them."""
        epochs = overrides.get("epochs")
        if isinstance(epochs, int | float) and 0 < epochs <= self.warmup_epochs:
            return {"warmup_epochs": epochs / 10}
        return {}

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return self.mixup > 0 or self.cutmix > 0
