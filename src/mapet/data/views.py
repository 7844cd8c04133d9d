"""What the model sees of an image: a region of it at some size, the evaluation crop, or a random crop.

A view is called with a PIL image and a seed, and returns uint8 (3, size, size). Views without chance ignore the seed. Resizing is
Pillow's, which smooths before it shrinks. Which region is seen is the business of `mapet.data.regions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.data.regions import Region, central_square, check_scale, draw_region
from mapet.errors import SettingsError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LONGEST = 32
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


class View(Protocol):
    """From a PIL image in mode RGB and a seed to uint8 (3, size, size)."""

    size: int

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """The view of one image; a random view is a function of the image and the seed."""
        ...


@dataclass(frozen=True)
class Rendering:
    """How a region becomes pixels; tokenizer and backbone have one each, for the same regions.

    The region is cut out first, so that nothing outside it is seen, and mirrored last, so that both orientations have the same
    pixels.

    Args:
        size: Side of the result in pixels.
        interpolation: "bicubic" or "lanczos".
    """

    size: int
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _positive(self.size)
        if self.interpolation not in _FILTERS:
            raise SettingsError(f"There is no interpolation '{self.interpolation}'. {nearest(self.interpolation, _FILTERS)}")

    def __call__(self, image: Image.Image, region: Region) -> Tensor:
        """uint8 (3, size, size) of a region of a PIL image in mode RGB."""
        part = image.crop(region.box).resize((self.size, self.size), _FILTERS[self.interpolation])
        return _to_tensor(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if region.flip else part)


class FixedView:
    """The central square of the shorter side, resized: the view of the paper (mapet.md, section 4)."""

    def __init__(self, size: int, interpolation: str = "bicubic") -> None:
        self.size = size
        self._rendering = Rendering(size, interpolation)

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size)."""
        return self._rendering(image, central_square(*image.size))


class EvaluationView:
    """Shorter side to floor(size / crop_fraction), then the central square (224 px: 248, then 224)."""

    def __init__(self, size: int, crop_fraction: float = 0.9) -> None:
        if not 0 < crop_fraction <= 1:
            raise SettingsError(f"crop_fraction is {crop_fraction}; allowed: above 0, at most 1.")
        self.size = _positive(size)
        self.shorter_side = math.floor(size / crop_fraction)

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size)."""
        return _to_tensor(_centre_crop(self.resized(image), self.size))

    def resized(self, image: Image.Image) -> Image.Image:
        """The image of which the centre is cut out: its shorter side has `shorter_side` pixels."""
        image = without_far_ends(image)
        width, height = image.size
        side, shorter = self.shorter_side, min(width, height)
        return _resize(image, side * width // shorter, side * height // shorter)


class AugmentedView:
    """A random part of the image, resized, and flipped left to right half of the time.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest share of the image's area; the aspect ratio lies between 3:4 and 4:3.
    """

    def __init__(self, size: int, scale: tuple[float, float] = (0.08, 1.0)) -> None:
        check_scale(scale)
        self.size, self.scale = size, scale
        self._rendering = Rendering(size)

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size), a function of the image and the seed."""
        region = draw_region(image.width, image.height, torch.Generator().manual_seed(seed), self.scale)
        return self._rendering(image, region)


def without_far_ends(image: Image.Image) -> Image.Image:
    """The image itself, or the middle of one that is more than `_LONGEST` times longer than wide.

    Views that resize an image before they cut out its central square would enlarge 12,000 x 1 pixels to 1 GB. What is left out lies
    far from anything that reaches the square.
    """
    longest = _LONGEST * min(image.size)
    excess = [max(0, side - longest) // 2 for side in image.size]  # on both sides, so that the centre stays where it is
    if not any(excess):
        return image
    return image.crop((excess[0], excess[1], image.width - excess[0], image.height - excess[1]))


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
    return (scaled - per_channel(tuple(mean), scaled.dtype, scaled.device)) / per_channel(tuple(std), scaled.dtype, scaled.device)


@cache
def per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` as (C, 1, 1), copied to the device once: every copy from the host would wait for the device."""
    with torch.inference_mode(False):  # the cached tensor serves training too, whoever creates it
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


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
