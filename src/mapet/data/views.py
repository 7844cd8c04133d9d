"""What the model sees of an image: a fixed square, the evaluation crop, or a random crop.

A view is called with a PIL image and a seed, and returns uint8 (3, size, size). Views without chance ignore the seed. Bicubic is
Pillow's, which smooths before it shrinks.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.errors import SettingsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class View(Protocol):
    """From a PIL image in mode RGB and a seed to uint8 (3, size, size)."""

    size: int

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """The view of one image; a random view is a function of the image and the seed."""
        ...


class FixedView:
    """The central square of the shorter side, resized: the view that tokens are stored for (mapet.md, section 4)."""

    def __init__(self, size: int) -> None:
        self.size = _positive(size)

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size)."""
        side = min(image.size)
        return _to_tensor(_resize(_centre_crop(image, side), self.size, self.size))

    def describe(self) -> dict[str, Any]:
        """What a token store records about this view; the size is the tokenizer's and the model's own."""
        return {"name": "fixed", "crop": "central square of the shorter side", "resize": "bicubic, antialiased (Pillow)"}


class EvaluationView:
    """Shorter side to floor(size / crop_fraction), then the central square (224 px: 248, then 224)."""

    def __init__(self, size: int, crop_fraction: float = 0.9) -> None:
        if not 0 < crop_fraction <= 1:
            raise SettingsError(f"crop_fraction is {crop_fraction}; allowed: above 0, at most 1.")
        self.size = _positive(size)
        self.shorter_side = math.floor(size / crop_fraction)

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size)."""
        width, height = image.size
        side, shorter = self.shorter_side, min(width, height)
        return _to_tensor(_centre_crop(_resize(image, side * width // shorter, side * height // shorter), self.size))


class AugmentedView:
    """A random part of the image, resized, and flipped left to right half of the time.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest share of the image's area; the aspect ratio lies between 3:4 and 4:3.
    """

    def __init__(self, size: int, scale: tuple[float, float] = (0.08, 1.0)) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise SettingsError(f"scale is {scale}; allowed: two shares of the area, 0 < smallest <= largest <= 1.")
        self.size, self.scale = _positive(size), scale

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size), a function of the image and the seed."""
        generator = torch.Generator().manual_seed(seed)
        box = self.draw_box(image.width, image.height, generator)
        part = image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if torch.rand((), generator=generator) < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_tensor(part)

    def draw_box(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """left, top, right, bottom: the first of ten draws that fits, or the largest central part of an allowed shape."""
        draws = torch.rand(_ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist()
        low, high = self.scale
        narrow, wide = (math.log(ratio) for ratio in _ASPECT_RATIOS)
        for area_draw, ratio_draw, left_draw, top_draw in draws:
            area = width * height * (low + (high - low) * area_draw)
            ratio = math.exp(narrow + (wide - narrow) * ratio_draw)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int((width - w + 1) * left_draw), int((height - h + 1) * top_draw)
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * _ASPECT_RATIOS[1])))
        h = max(1, min(height, round(width / _ASPECT_RATIOS[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def normalise(images: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """(images - mean) / std per channel.

    Args:
        images: (B, 3, H, W), uint8 or float in [0, 1].
        mean: One value a channel, for images in [0, 1].
        std: One value a channel.

    Returns:
        (B, 3, H, W) float32, or the float type that was given.
    """
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    means, stds = scaled.new_tensor(mean).view(-1, 1, 1), scaled.new_tensor(std).view(-1, 1, 1)
    return (scaled - means) / stds


def _positive(size: int) -> int:
    if size < 1:
        raise SettingsError(f"The size of a view is {size} pixels; allowed: 1 or more.")
    return size


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
