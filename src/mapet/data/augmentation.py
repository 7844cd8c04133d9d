"""The training view of supervised learning: random resized crop, flip, RandAugment or colour jitter, by timm's transforms.

timm and torchvision draw from the global generators of Python, NumPy and torch. Here all three are seeded for one image and put
back afterwards, so that a view stays a function of the image and its seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.compat import create_transform
from mapet.data.regions import check_scale
from mapet.data.views import IMAGENET_MEAN
from mapet.errors import SettingsError
from mapet.runtime.seeding import derive_seed

INTERPOLATIONS = ("bicubic", "bilinear", "random")
_NUMBER = r"\d+(\.\d+)?"
_RAND_AUGMENT = re.compile(rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]))*")


@contextmanager
def seeded_everywhere(*parts: int | str) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch (CPU) by `parts` inside the block and restores them afterwards.

    `torch.manual_seed` would seed all devices, which takes longer than to augment a small image.
    """
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(derive_seed("python", *parts))
    np.random.seed(derive_seed("numpy", *parts) % 2**32)
    torch.default_generator.manual_seed(derive_seed("torch", *parts))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_)


class TrainingView:
    """A random crop, mirrored half of the time, then RandAugment or colour jitter.

    Args:
        size: Side of the result in pixels.
        rand_augment: In timm's notation, such as "rand-m9-mstd0.5-inc1" (9/0.5); None for none.
        color_jitter: Strength of brightness, contrast and saturation. As in timm, RandAugment takes its place where there is one.
        scale: Smallest and largest share of the image's area; the aspect ratio lies between 3:4 and 4:3.
        flip: Whether to mirror half of the images.
        interpolation: "bicubic", "bilinear", or "random" for one of both.
        mean: Fills what RandAugment moves into the image; that of the normalisation.

    Raises:
        SettingsError: A value is not allowed.
    """

    def __init__(
        self,
        size: int,
        rand_augment: str | None = None,
        color_jitter: float = 0.0,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        interpolation: str = "bicubic",
        mean: tuple[float, ...] = IMAGENET_MEAN,
    ) -> None:
        check_scale(scale)
        check_rand_augment(rand_augment)
        if interpolation not in INTERPOLATIONS:
            raise SettingsError(f"There is no interpolation '{interpolation}'. Allowed: {', '.join(INTERPOLATIONS)}.")
        self.size = size
        transform = create_transform(
            size,
            is_training=True,
            scale=scale,
            hflip=0.5 if flip else 0.0,
            color_jitter=color_jitter,
            auto_augment=rand_augment,
            interpolation=interpolation,
            mean=mean,
            normalize=False,
        )
        _let_posterize_blacken(transform)
        self._transform = cast(Callable[[Image.Image], Tensor], transform)

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size), a function of the image and the seed."""
        with seeded_everywhere("augmentation", seed):
            return self._transform(image)


def _let_posterize_blacken(transform: Any) -> None:
    """Makes timm's Posterize work where it keeps no bit: at the largest magnitude, to which a deviation leads now and then.

    Pillow 13 refuses that. With older ones the image became black, which is what published recipes were trained with.
    """
    for part in transform.transforms:
        for operation in getattr(part, "ops", []):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps the `bits` highest bits of every pixel."""
    bit_mask = 256 - 2 ** (8 - min(max(bits, 0), 8))
    return image.point([value & bit_mask for value in range(256)] * len(image.getbands()))


def check_rand_augment(text: str | None) -> None:
    """Refuses what timm would not understand, or would take for something else than was meant.

    Raises:
        SettingsError: Invalid; the message has the syntax of RandAugment.
    """
    if text is not None and not _RAND_AUGMENT.fullmatch(text):
        raise SettingsError(
            f"rand_augment is '{text}'; allowed: null for none, or timm's notation, such as rand-m9-mstd0.5-inc1: magnitude 9 with "
            "a deviation of 0.5, each operation stronger with the magnitude. n2 gives two operations an image."
        )
