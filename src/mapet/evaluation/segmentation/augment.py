"""What is done to an image and its mask before they are trained on, in the order of BEiT's ADE20K configuration.

Resize, random crop, flip, photometric distortion, padding. Sizes are those of mmsegmentation; resizing is Pillow's, which smooths
before it shrinks, and hue and saturation are changed in Pillow's 8-bit HSV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.data.loader import image_shape
from mapet.data.mask_files import IGNORED, PADDED
from mapet.data.masked import MaskedImages
from mapet.runtime.seeding import derive_seed

_ATTEMPTS = 10
_BRIGHTNESS, _FACTORS, _HUE = 32, (0.5, 1.5), 18
_HUE_STEPS = 256 / 180


class Draws:
    """Numbers drawn one after the other from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high - 1."""
        return int(torch.randint(low, high, (), generator=self._generator))

    def chance(self) -> bool:
        """True half of the time."""
        return self.uniform() < 0.5


@dataclass(frozen=True)
class Augmentation:
    """Resize, crop, flip, distort and pad; a function of image, mask and seed.

    Args:
        crop: Side of the result in pixels.
        scale: Longest and shortest side that a resized image may have at most, before `ratio`.
        ratio: Both are multiplied by a number drawn from this range.
        max_class_share: A crop in which one class takes a larger share is drawn again, up to ten times.
    """

    crop: int
    scale: tuple[int, int]
    ratio: tuple[float, float]
    max_class_share: float

    def __call__(self, image: Image.Image, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (crop, crop, 3) and int16 (crop, crop) with `PADDED` where there is no image; `mask` is (H, W)."""
        draws = Draws(seed)
        image, mask = self._resize(image, mask, draws)
        box = self._draw_box(mask, draws)
        left, top, right, bottom = box
        pixels, mask = np.asarray(image.crop(box)), mask[top:bottom, left:right]
        if draws.chance():
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        return pad(distort(pixels, draws), mask, self.crop)

    def _resize(self, image: Image.Image, mask: np.ndarray, draws: Draws) -> tuple[Image.Image, np.ndarray]:
        factor = draws.uniform(*self.ratio)
        longest, shortest = (int(side * factor) for side in self.scale)
        size = fitting_size(*image.size, longest, shortest)
        resized = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        return image.resize(size, Image.Resampling.BILINEAR), np.asarray(resized, np.int16)

    def _draw_box(self, mask: np.ndarray, draws: Draws) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a crop in which no class takes more than its share; of the last draw if there is none."""
        box = self._draw_one(mask, draws)
        for _ in range(_ATTEMPTS):
            left, top, right, bottom = box
            if is_varied(mask[top:bottom, left:right], self.max_class_share):
                break
            box = self._draw_one(mask, draws)
        return box

    def _draw_one(self, mask: np.ndarray, draws: Draws) -> tuple[int, int, int, int]:
        height, width = mask.shape
        top = draws.integer(0, max(height - self.crop, 0) + 1)
        left = draws.integer(0, max(width - self.crop, 0) + 1)
        return left, top, min(left + self.crop, width), min(top + self.crop, height)


class MaskedRenderer:
    """`LoadedBatch.images` and `labels`, the class of every pixel (negative where there is none), of one augmented view.

    Args:
        source: For the masks.
        augment: What is drawn is a function of (seed, number of the view, sample key).
        seed: Of the training.
    """

    def __init__(self, source: MaskedImages, augment: Augmentation, seed: int) -> None:
        self._source, self._augment, self._seed = source, augment, seed
        self.shapes = {"images": image_shape(augment.crop), "labels": ((augment.crop, augment.crop), torch.int16)}

    def __call__(self, image: Image.Image, key: str, index: int, view: int) -> dict[str, Tensor]:
        """See `mapet.data.loader.Renderer`."""
        seed = derive_seed(self._seed, "augment", view, key)
        pixels, mask = (np.ascontiguousarray(array) for array in self._augment(image, self._source.read_mask(index), seed))
        return {"images": torch.from_numpy(pixels).permute(2, 0, 1), "labels": torch.from_numpy(mask)}


def fitting_size(width: int, height: int, longest: int, shortest: int) -> tuple[int, int]:
    """The largest size of the same shape whose longer side is at most `longest` and whose shorter side is at most `shortest`."""
    factor = min(longest / max(width, height), shortest / min(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def is_varied(mask: np.ndarray, max_class_share: float) -> bool:
    """Whether there are at least two classes and none takes that share or more of the pixels that have one."""
    counts = np.bincount(mask[mask > IGNORED])
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_class_share)


def distort(pixels: np.ndarray, draws: Draws) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each changed half of the time; contrast before or after the last two.

    Args:
        pixels: (H, W, 3) uint8.
        draws: Where chance comes from.

    Returns:
        (H, W, 3) uint8.
    """
    if draws.chance():
        pixels = _scaled(pixels, 1.0, draws.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = draws.chance()
    if contrast_first and draws.chance():
        pixels = _scaled(pixels, draws.uniform(*_FACTORS))
    if draws.chance():
        pixels = _in_hsv(pixels, draws.uniform(*_FACTORS), 0)
    if draws.chance():
        pixels = _in_hsv(pixels, 1.0, draws.integer(-_HUE, _HUE))
    if not contrast_first and draws.chance():
        pixels = _scaled(pixels, draws.uniform(*_FACTORS))
    return pixels


def pad(pixels: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask with `PADDED` at the right and at the bottom, up to a square of `side` pixels."""
    below, right = side - mask.shape[0], side - mask.shape[1]
    padded = np.pad(pixels, ((0, below), (0, right), (0, 0)))
    return padded, np.pad(mask, ((0, below), (0, right)), constant_values=PADDED)


def _scaled(pixels: np.ndarray, factor: float, shift: float = 0.0) -> np.ndarray:
    return (pixels.astype(np.float32) * factor + shift).clip(0, 255).astype(np.uint8)


def _in_hsv(pixels: np.ndarray, saturation: float, hue: int) -> np.ndarray:
    """`hue` counts in steps of 2 degrees."""
    hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(hue * _HUE_STEPS)) % 256
    hsv[..., 1] = _scaled(hsv[..., 1], saturation)
    return np.asarray(Image.frombytes("HSV", (hsv.shape[1], hsv.shape[0]), hsv.tobytes()).convert("RGB"))
