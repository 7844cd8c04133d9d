"""Everything that decides what a VQ-KD tokenizer learns; the defaults are those of the published ones."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mapet.data.regions import check_scale
from mapet.errors import SettingsError
from mapet.tokenizers.fit_settings import LARGEST_VOCABULARY

EPOCHS = 100.0
# Learning rate for a batch of this size; it grows and shrinks with the batch.
LR, LR_BATCH = 2e-4, 512


@dataclass(frozen=True)
class VQKDSettings:
    """A training of VQ-KD.

    Args:
        teacher: Features that the decoder reconstructs: a name as in `create_features`.
        teacher_options: Settings of that kind of features.
        teacher_image_size: Pixels at which the teacher sees each crop; by default the tokenizer's image size.
        image_size: Height and width of the tokenizer's images in pixels.
        vocab_size: Number of tokens.
        code_dim: Length of a code.
        encoder: Name of a plain timm ViT.
        encoder_options: Keyword arguments of `timm.create_model` for it.
        decoder_depth: Blocks of the decoder, which is as wide as the encoder.
        steps: Optimizer steps; give this or `epochs`.
        epochs: Passes over the images; by default 100.
        batch_size: Images per step, over all processes.
        lr: Highest learning rate; by default 2e-4 for 512 images, in proportion to the batch.
        min_lr: Last learning rate.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Of matrices and kernels; not of vectors, positions and class tokens.
        betas: Of AdamW.
        scale: Smallest and largest share of an image's area that a crop shows.
        flip: Whether half of the crops are mirrored.
        precision: Of the two ViTs and the teacher, "fp32" or "bf16"; codes, codebook and losses are float32.
        seed: Determines every draw.

    Raises:
        SettingsError: A value that is not allowed.
    """

    teacher: str
    teacher_options: dict[str, Any] = field(default_factory=dict)
    teacher_image_size: int | None = None
    image_size: int = 224
    vocab_size: int = 8192
    code_dim: int = 32
    encoder: str = "vit_base_patch16_224"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    decoder_depth: int = 3
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = LR_BATCH
    lr: float | None = None
    min_lr: float = 1e-5
    warmup: float = 0.1
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise SettingsError(f"Both steps ({self.steps}) and epochs ({self.epochs:g}) are given; give one of them.")
        if self.precision not in ("fp32", "bf16"):
            raise SettingsError(f"The precision is '{self.precision}'. Allowed: fp32, bf16.")
        if not 0 <= self.warmup < 1:
            raise SettingsError(f"The warm-up is {self.warmup:g} of the training. Allowed: 0 to below 1.")
        if misplaced := [name for name in ("name", "image_size", "patch_size") if name in self.teacher_options]:
            raise SettingsError(f"{misplaced[0]} is no option of the teacher; it is set beside them.")
        if not 2 <= self.vocab_size <= LARGEST_VOCABULARY:
            raise SettingsError(f"The vocabulary size is {self.vocab_size}. Allowed: 2 to {LARGEST_VOCABULARY}.")
        check_scale(self.scale)
        positive = {"decoder_depth": self.decoder_depth, "batch_size": self.batch_size}
        positive |= {"steps": self.steps, "epochs": self.epochs, "lr": self.lr, "teacher_image_size": self.teacher_image_size}
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value:g}; it must be positive.")

    @property
    def highest_lr(self) -> float:
        """`lr`, or what the batch size makes of the published one."""
        return self.lr if self.lr is not None else LR * self.batch_size / LR_BATCH

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        return self.steps or max(1, round((EPOCHS if self.epochs is None else self.epochs) * steps_per_epoch))

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Linear warm-up from (nearly) nothing, then a cosine down to `min_lr` at `total_steps`, per step."""
        warmup = round(self.warmup * total_steps)
        if step < warmup:
            return self.highest_lr * (step + 1) / (warmup + 1)
        lowest = min(self.min_lr, self.highest_lr)
        progress = (step - warmup) / max(1, total_steps - warmup)
        return lowest + (self.highest_lr - lowest) * 0.5 * (1 + math.cos(math.pi * progress))

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
