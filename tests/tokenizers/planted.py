"""Tokenizers and images of which it is known how good they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.registry import allow
from mapet.tokenizers.base import Tokenizer
from tests.data.images import encoded

SIZE, PATCH = 32, 8
GRID = SIZE // PATCH


class Planted(Tokenizer):
    """Of 32 px images and 4 x 4 patches."""

    kind = "tests.tokenizers.planted:Planted"

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, (GRID, GRID), SIZE)

    def settings(self) -> dict:
        return {"vocab_size": self.vocab_size}

    @classmethod
    def from_settings(cls, settings: dict) -> Planted:
        return cls(**settings)


class Collapsed(Planted):
    """Every patch has the same code."""

    def tokens(self, images: Tensor) -> Tensor:
        return torch.full((len(images), GRID, GRID), 3, device=images.device)


class Hashed(Planted):
    """The code of a patch is a hash of the bits of its pixels: any change gives another one."""

    def tokens(self, images: Tensor) -> Tensor:
        bits = images.contiguous().view(torch.int32).long()
        patches = bits.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)
        odd = 2 * torch.randint(2**40, (patches.shape[-1],), generator=torch.Generator().manual_seed(0)) + 1
        return ((patches * odd.to(images.device)).sum(-1) >> 17) % self.vocab_size


class Places(Planted):
    """The code of a patch is its place, whatever it shows."""

    def tokens(self, images: Tensor) -> Tensor:
        return torch.arange(GRID**2, device=images.device).view(1, GRID, GRID).expand(len(images), -1, -1)


class Colors(Planted):
    """The code of a patch is its strongest colour channel."""

    def tokens(self, images: Tensor) -> Tensor:
        return images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).mean((4, 5)).argmax(1)


class ColoredImages:
    """Images of 4 x 4 patches, each red, green or blue; the commonest colour of an image is its label where `labelled`."""

    location, classes = "colours", None

    def __init__(self, count: int, labelled: bool = False) -> None:
        draws = np.random.default_rng(0)
        favourites = draws.integers(0, 3, count)
        shares = np.where(np.arange(3) == favourites[:, None], 0.8, 0.1) if labelled else np.full((count, 3), 1 / 3)
        self.colors = np.stack([draws.choice(3, (GRID, GRID), p=share) for share in shares])
        self.labels = favourites if labelled else None

    def __len__(self) -> int:
        return len(self.colors)

    def read(self, index: int) -> bytes:
        return encoded(Image.fromarray(painted(self.colors[index], index)))

    def describe(self, index: int) -> str:
        return f"image {index}"


def painted(colors: np.ndarray, seed: int) -> np.ndarray:
    """(32, 32, 3) uint8 of colours (4, 4); a little uneven, so that no two patches are the same."""
    pixels = np.where(np.arange(3) == colors[..., None], 150, 60).repeat(PATCH, 0).repeat(PATCH, 1)
    return (pixels + np.random.default_rng(seed).integers(-9, 10, pixels.shape)).astype(np.uint8)


class Listed:
    """Images given as bytes."""

    location, classes, labels = "listed", None, None

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.contents = contents

    def __len__(self) -> int:
        return len(self.contents)

    def read(self, index: int) -> bytes:
        return self.contents[index]

    def describe(self, index: int) -> str:
        return f"image {index}"


allow(Planted.kind)  # saved ones are loaded again
