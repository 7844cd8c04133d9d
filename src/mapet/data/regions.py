"""Regions: which part of an image tokenizer and backbone see. Each of them renders the same region at its own size.

    fixed    the central square, as in the paper
    stored   K random crops of every image, whose tokens are stored; each epoch uses the next one
    online   a new random crop in every epoch, whose tokens are computed during training

A region is a function of the image's size, its sample key and the view index. The order of calls and the process do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mapet.config.settings import ViewSettings
from mapet.errors import SettingsError
from mapet.runtime.seeding import seeded_generator

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


@dataclass(frozen=True)
class Region:
    """A part of an image.

    Args:
        left: First column, in pixels of the upright original.
        top: First row.
        right: One past the last column.
        bottom: One past the last row.
        flip: Whether it is then mirrored left to right.
    """

    left: int
    top: int
    right: int
    bottom: int
    flip: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom, as Pillow takes them."""
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True)
class FixedCrop:
    """The central square of the shorter side, always (mapet.md, section 4)."""

    count = None

    def view_index(self, epoch: int) -> int:
        """Always 0: there is one view."""
        return 0

    def region(self, width: int, height: int, key: str, view_index: int) -> Region:
        """The central square, for every key and view index."""
        return central_square(width, height)

    def describe(self) -> dict[str, Any]:
        """The entry of a token store's header; `regions_from` reads it."""
        return {"name": "fixed"}

    def options(self) -> str:
        """The options of `mapet tokenize` for a store of this view: none, because it is the default."""
        return ""


@dataclass(frozen=True)
class RandomCrops:
    """Random crops, drawn for every image separately. With a `count` they repeat; without one each epoch has new ones.

    Args:
        count: Crops an image, numbered from 0; None for a new one in every epoch ("online").
        scale: Smallest and largest share of the image's area; the aspect ratio lies between 3:4 and 4:3.
        flip: Whether half of them are mirrored.
        seed: Determines the crops.
    """

    count: int | None
    scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise SettingsError(f"The number of stored views is {self.count}; allowed: 1 or more.")
        check_scale(self.scale)

    def view_index(self, epoch: int) -> int:
        """The index of the crop that an epoch uses: stored crops take turns."""
        return epoch % self.count if self.count else epoch

    def region(self, width: int, height: int, key: str, view_index: int) -> Region:
        """Drawn from (seed, key, view_index)."""
        return draw_region(width, height, seeded_generator(self.seed, "crop", key, view_index), self.scale, self.flip)

    def describe(self) -> dict[str, Any]:
        """The entry of a token store's header; `regions_from` reads it."""
        settings = {"scale": [*map(float, self.scale)], "flip": self.flip, "seed": self.seed}
        return {"name": "stored", "count": self.count, **settings} if self.count else {"name": "online", **settings}

    def options(self) -> str:
        """The options of `mapet tokenize` for a store of this view; empty for online crops, which are not stored."""
        if self.count is None:
            return ""
        low, high = self.scale
        flip, seed = "" if self.flip else " --no-flip", f" --seed {self.seed}" if self.seed else ""
        return f" --views {self.count} --scale {low:g} {high:g}{flip}{seed}"


# Both have `count`, `view_index`, `region`, `describe` and `options`; `count` is None where a store has no axis for it.
Regions = FixedCrop | RandomCrops


def regions_of(view: ViewSettings, run_seed: int) -> Regions:
    """The regions of a run. Stored crops have their own seed, because several runs can share a store."""
    if view.name == "stored":
        return RandomCrops(view.count, view.scale, view.flip, view.seed)
    return RandomCrops(None, view.scale, view.flip, run_seed) if view.name == "online" else FixedCrop()


def regions_from(description: Mapping[str, Any]) -> Regions:
    """The inverse of `describe`.

    Raises:
        SettingsError: The description is unknown.
    """
    if description == FixedCrop().describe():
        return FixedCrop()
    try:
        low, high = map(float, description["scale"])
        count = int(description["count"]) if "count" in description else None
        regions = RandomCrops(count, (low, high), bool(description["flip"]), int(description["seed"]))
    except (KeyError, TypeError, ValueError):
        regions = None
    if regions is None or regions.describe() != description:
        raise SettingsError(f"Unknown view in this version of mapet: {dict(description)}.")
    return regions


def central_square(width: int, height: int) -> Region:
    """The largest square in the middle."""
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return Region(left, top, left + side, top + side)


def draw_region(
    width: int, height: int, generator: torch.Generator, scale: tuple[float, float] = (0.08, 1.0), flip: bool = True
) -> Region:
    """A random region: the first of ten draws that fits, or the largest central part of an allowed shape.

    Args:
        width: Of the image, in pixels.
        height: Of the image.
        generator: On the CPU; where all draws come from.
        scale: Smallest and largest share of the area; the aspect ratio lies between 3:4 and 4:3.
        flip: Whether half of the regions are mirrored.
    """
    box = _draw_box(width, height, generator, scale)
    return Region(*box, flip=flip and bool(torch.rand((), generator=generator) < 0.5))


def check_scale(scale: tuple[float, float]) -> None:
    """Refuses anything but two shares of an area, the smaller one first."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise SettingsError(f"scale is {scale}; allowed: two shares of the area, 0 < smallest <= largest <= 1.")


def _draw_box(width: int, height: int, generator: torch.Generator, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    draws = torch.rand(_ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist()
    low, high = scale
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
