"""Small changes to images that leave what their patches show as it is: a tokenizer should be indifferent to them.

Draws are functions of the seed and the sample key, so that they are the same for every tokenizer and every batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.data.jitter import jitter_with
from mapet.runtime.seeding import seeded_generator

JITTER, NOISE = 0.4, 0.02


class Perturbation(ABC):
    """A change to images, and which patches correspond before and after it."""

    name: ClassVar[str]
    title: ClassVar[str]
    # Whether the pixels of a patch change: where they stay the same, even a hash of them survives.
    changes_pixels: ClassVar[bool] = True
    # Patches a side that are needed for some to be left to compare.
    least_grid: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, images: Tensor, keys: Sequence[str], seed: int, patch: int) -> Tensor:
        """The changed images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            keys: B sample keys.
            seed: Of the draws.
            patch: Side of a patch in pixels.

        Returns:
            (B, 3, H, W) in [0, 1].
        """

    def align(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of ids (n, gh, gw) of both, those that are compared, (n, rows, columns): corresponding patches at the same place."""
        return before, after


class Flip(Perturbation):
    """Left becomes right; patches are compared with their mirror image."""

    name, title = "flip", "horizontal flip"

    def __call__(self, images: Tensor, keys: Sequence[str], seed: int, patch: int) -> Tensor:
        """The mirrored images."""
        return images.flip(3)

    def align(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All patches."""
        return before, after[:, :, ::-1]


class ColorJitter(Perturbation):
    """Brightness, contrast and saturation times 1 - JITTER to 1 + JITTER, as in pre-training."""

    name, title = "jitter", f"colour jitter {JITTER:g}"

    def __call__(self, images: Tensor, keys: Sequence[str], seed: int, patch: int) -> Tensor:
        """The recoloured images."""
        draws = torch.stack([torch.rand(2, 3, generator=seeded_generator(seed, "jitter", key)) for key in keys]).to(images)
        factors = 1 - JITTER + 2 * JITTER * draws[:, 0]
        return jitter_with(images, factors, order=draws[:, 1].argsort(dim=1))


class Noise(Perturbation):
    """Normal noise with a deviation of NOISE, 5 of 255 grey levels."""

    name, title = "noise", f"noise {NOISE:g}"

    def __call__(self, images: Tensor, keys: Sequence[str], seed: int, patch: int) -> Tensor:
        """The noisy images, clamped to [0, 1]."""
        shape = images.shape[1:]
        draws = torch.stack([torch.randn(shape, generator=seeded_generator(seed, "noise", key)) for key in keys]).to(images)
        return (images + NOISE * draws).clamp(0, 1)


class SmallShift(Perturbation):
    """An eighth of a patch to the right and down; the first row and column, whose pixels are partly made up, are not compared."""

    name, title, least_grid = "shift", "shift by 1/8 patch", 2

    def __call__(self, images: Tensor, keys: Sequence[str], seed: int, patch: int) -> Tensor:
        """The shifted images, their borders repeated."""
        return _shifted(images, max(1, round(patch / 8)))

    def align(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The patches that show what they showed, an eighth further."""
        return before[:, 1:, 1:], after[:, 1:, 1:]


class PatchShift(Perturbation):
    """One patch to the right and down: the grid moves along, and every patch keeps its pixels but not its place or border."""

    name, title, changes_pixels, least_grid = "patch shift", "shift by 1 patch", False, 2

    def __call__(self, images: Tensor, keys: Sequence[str], seed: int, patch: int) -> Tensor:
        """The shifted images, their borders repeated."""
        return _shifted(images, patch)

    def align(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every patch with itself, where it has moved to."""
        return before[:, :-1, :-1], after[:, 1:, 1:]


PERTURBATIONS: tuple[Perturbation, ...] = (Flip(), ColorJitter(), SmallShift(), Noise(), PatchShift())


def _shifted(images: Tensor, pixels: int) -> Tensor:
    height, width = images.shape[2:]
    return F.pad(images, (pixels, 0, pixels, 0), mode="replicate")[:, :, :height, :width]
