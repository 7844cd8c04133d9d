"""A part of the training images that choices are made on, so that nobody chooses on the test images."""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.errors import DataError
from mapet.runtime.seeding import seeded_generator


def hold_out_rows(labels: Tensor, share: float, seed: int) -> Tensor:
    """Which training images are held out: the same share of every class, drawn from (seed, class).

    A class gives round(share * images), but never its only image; if that is none from any class, each gives one.

    Args:
        labels: (n,) int64 of the training images.
        share: Of every class, above 0 and below 1.
        seed: Of the draw.

    Returns:
        (n,) bool on the device of `labels`, True = held out.

    Raises:
        DataError: No class has two images.
    """
    validation_split = torch.zeros(len(labels), dtype=torch.bool)
    groups = [(number, rows) for number, rows in rows_by_class(labels) if len(rows) > 1]
    if not groups:
        raise DataError(
            f"None of the {len(labels)} training images can be held out to choose settings on: every class has only one. "
            "Give one value instead of several (--set lr=..., --set l2=...)."
        )
    counts = [min(round(share * len(rows)), len(rows) - 1) for _, rows in groups]
    for (number, rows), count in zip(groups, counts if any(counts) else [1] * len(groups), strict=True):
        validation_split[draw_rows(rows, count, seed, "held out", number)] = True
    return validation_split.to(labels.device)


def values_of(setting: float | tuple[float, ...]) -> tuple[float, ...]:
    """What there is to choose from: the values of a setting, be it one or several."""
    return tuple(setting) if isinstance(setting, (tuple, list)) else (setting,)


def rows_by_class(labels: Tensor) -> list[tuple[int, Tensor]]:
    """Every class that occurs, with the rows of its images in order, on the CPU."""
    order = labels.cpu().argsort(stable=True)
    numbers, counts = labels.cpu().unique(return_counts=True)
    return list(zip(numbers.tolist(), order.split(counts.tolist()), strict=True))


def draw_rows(rows: Tensor, count: int, *purpose: int | str) -> Tensor:
    """`count` of `rows`, a function of the rows and the purpose."""
    return rows[torch.randperm(len(rows), generator=seeded_generator(*purpose))[:count]]
