"""How sure a difference between two backbones is: 95 % intervals, paired over the same test images.

Figures that are means over images (top-1, top-5): the adjusted Wald interval of Bonett and Price (2012, Journal of Educational and
Behavioral Statistics 37; recommended by Fagerland, Lydersen and Laake, 2014, Statistics in Medicine 33). It is the normal interval
of the mean difference after two imaginary images are added: one that only the first backbone gets right, and one that only the
second does. It holds for few images too, and hardly ever differs from McNemar's exact test.

All other figures: the percentile interval of a bootstrap over the test images, with a fixed seed. For the mean per class the same
two images are added; for mIoU there are none to add, and fewer than ten images have no interval.

Both take the backbones as they are: the interval holds for other test images of this kind, not for other seeds of a pre-training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mapet.evaluation.outcomes import MEAN_PER_CLASS, Outcomes
from mapet.evaluation.segmentation.miou import scores_of_pixels

Z = 1.959964
RESAMPLES = 2000
FEWEST = 10  # test images of a segmentation
_SEED = 20120601
_Interval = tuple[float, float]


def gain_intervals(after: Outcomes, before: Outcomes) -> dict[str, list[float]]:
    """The interval of (figure of `after` - figure of `before`) for every figure of both; the same images in the same order.

    Returns:
        Name of the figure to [low, high], as shares.
    """
    intervals = {
        name: mean_interval((after.values[name] - before.values[name]).numpy()) for name in after.values if name in before.values
    }
    if after.labels is not None and "top1" in intervals:
        intervals[MEAN_PER_CLASS] = _per_class(after, before)
    if after.pixels is not None and before.pixels is not None and len(after.pixels) >= FEWEST:
        intervals |= _of_pixels(after.pixels.numpy(), before.pixels.numpy())
    return {name: [low, high] for name, (low, high) in intervals.items()}


def mean_interval(differences: np.ndarray) -> _Interval:
    """Of the mean of differences (n,), each -1 to 1: of outcomes that are 0 or 1, the interval of Bonett and Price."""
    images = len(differences) + 2
    mean = differences.sum() / images
    variance = (np.square(differences).sum() + 2) / images - mean**2
    half = Z * math.sqrt(variance / images)
    return max(-1.0, float(mean - half)), min(1.0, float(mean + half))


def share_interval(outcomes: Tensor) -> list[float]:
    """[low, high] of one share: Wilson's interval of outcomes (n,) that are 0 or 1."""
    images, share = len(outcomes), float(outcomes.mean())
    centre, width = share + Z**2 / (2 * images), Z * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    return [max(0.0, (centre - width) / (1 + Z**2 / images)), min(1.0, (centre + width) / (1 + Z**2 / images))]


def bootstrap(images: int, statistics: Callable[[np.ndarray], Sequence[float]]) -> list[_Interval]:
    """Percentiles 2.5 and 97.5 of some statistics over resampled images.

    Args:
        images: n, at least 1.
        statistics: From how often every image was drawn, (n,) int64, to numbers.
    """
    generator = np.random.default_rng(_SEED)
    draws = (np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(RESAMPLES))
    low, high = np.nanpercentile([statistics(drawn) for drawn in draws], [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def paired_interval(before: tuple[np.ndarray, Outcomes], after: tuple[np.ndarray, Outcomes], metric: str) -> list[float] | None:
    """The interval of a difference over the images that both were tested on; None where they share none.

    Args:
        before: Sample keys (n,) and outcomes, as `load_outcomes` gives them.
        after: The same of the other.
        metric: The figure.
    """
    rows = [_occurrences(keys) for keys, _ in (before, after)]
    shared = [*rows[0].keys() & rows[1].keys()]
    if not shared:
        return None
    one, other = (
        _only(outcomes, [row_of[key] for key in sorted(shared)])
        for (_, outcomes), row_of in zip((before, after), rows, strict=True)
    )
    return gain_intervals(other, one).get(metric)


def is_distinguishable(interval: _Interval | list[float]) -> bool:
    """Whether 0 lies outside."""
    return interval[0] > 0 or interval[1] < 0


def describe(gain: float, interval: list[float] | None) -> str:
    """A difference for people: "+11.8 points [9.6, 13.9]", and in words where 0 lies within."""
    if interval is None:
        return f"{100 * gain:+.1f} points"
    doubt = "" if is_distinguishable(interval) else ", not distinguishable"
    return f"{100 * gain:+.1f} points [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]{doubt}"


def _per_class(after: Outcomes, before: Outcomes) -> _Interval:
    assert after.labels is not None
    labels = np.unique(after.labels.numpy(), return_inverse=True)[1]
    labels = np.append(labels, [np.bincount(labels).argmax()] * 2)
    differences = np.append((after.values["top1"] - before.values["top1"]).numpy(), [1.0, -1.0])

    def statistics(drawn: np.ndarray) -> list[float]:
        counts = np.bincount(labels, weights=drawn)
        return [float(np.mean(np.bincount(labels, weights=drawn * differences)[counts > 0] / counts[counts > 0]))]

    return bootstrap(len(labels), statistics)[0]


def _of_pixels(after: np.ndarray, before: np.ndarray) -> dict[str, _Interval]:
    """Of all figures of a segmentation, from one set of draws."""
    both = [pixels.reshape(len(pixels), -1).astype(np.float64) for pixels in (after, before)]

    def metrics(drawn: np.ndarray) -> list[dict[str, float]]:
        return [scores_of_pixels(torch.from_numpy(drawn @ pixels).view(3, -1)).metrics for pixels in both]

    def statistics(drawn: np.ndarray) -> list[float]:
        one, other = metrics(drawn)
        return [one[name] - other[name] for name in one]

    return dict(zip(metrics(np.ones(len(after)))[0], bootstrap(len(after), statistics), strict=True))


def _occurrences(keys: np.ndarray) -> dict[tuple[bytes, int], int]:
    """The row of every image, by its key and by how many images of that key came before it."""
    counts: dict[bytes, int] = {}
    rows = {}
    for row, key in enumerate(keys.tolist()):
        counts[key] = counts.get(key, -1) + 1
        rows[key, counts[key]] = row
    return rows


def _only(outcomes: Outcomes, rows: list[int]) -> Outcomes:
    index = torch.tensor(rows)
    labels, pixels = (None if part is None else part[index] for part in (outcomes.labels, outcomes.pixels))
    return Outcomes({name: value[index] for name, value in outcomes.values.items()}, labels, pixels)
