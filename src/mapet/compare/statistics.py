"""How sure a difference between two ways to pre-train is: intervals that count both the seeds and the test images.

Of S seeds and n test images, d[s, i] is the difference of both ways at seed s on image i. The seeds and the images are both draws,
crossed with each other, so the mean difference has the variance

    (M_seeds + M_images - M_rest) / (S n)

of mean squares of the two-way analysis of variance without replication. The interval is that of Student's t with Satterthwaite's
degrees of freedom (Satterthwaite, "An approximate distribution of estimates of variance components", 1946). A bootstrap over seeds
and images is not used: over three seeds it sees two thirds of their variance, and its "95 %" intervals cover far less (the tests
measure it). A figure that is no mean over images (mIoU) has the variance over seeds plus that of a bootstrap over the images.

With one seed the interval holds for other test images only, and not for other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds and test images.

    Args:
        mean: As a share.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        p: Two-sided, that a difference as large arises where there is none.
        seeds: How many were paired; with one, the interval counts the test images only.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def paired_difference(differences: np.ndarray) -> Difference:
    """The mean of differences (S, n), each -1 to 1, of S seeds on the same n test images.

    Raises:
        ValueError: There are no images.
    """
    seeds, images = differences.shape
    if not images:
        raise ValueError("There are no images.")
    mean = float(differences.mean())
    # One imaginary image for each way keeps few images from an interval of no width (Bonett and Price, 2012).
    added = np.concatenate([differences, np.tile([1.0, -1.0], (seeds, 1))], axis=1)
    squares = _mean_squares(added)
    variance, freedom = _combined(squares, seeds, images + 2)
    return _interval(mean, variance, freedom, seeds)


def difference_of_figures(figures: Sequence[float], variance_over_images: float) -> Difference:
    """The mean of the differences (S,) of a figure that is no mean over images.

    Args:
        figures: The difference at every seed.
        variance_over_images: Of the mean difference, by a bootstrap over the test images.
    """
    seeds = len(figures)
    over_seeds = float(np.var(figures, ddof=1)) / seeds if seeds > 1 else 0.0
    freedom = math.inf
    if over_seeds > 0:
        freedom = (over_seeds + variance_over_images) ** 2 / (over_seeds**2 / (seeds - 1))
    return _interval(float(np.mean(figures)), over_seeds + variance_over_images, freedom, seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for several comparisons by Holm's method (1979): reject where the adjusted value is below the level."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _mean_squares(differences: np.ndarray) -> tuple[float, float, float]:
    """Of seeds, images and what is left, of (S, n); with one seed, of the images alone."""
    seeds, images = differences.shape
    over_images = differences.mean(axis=0)
    if seeds == 1:
        return 0.0, float(over_images.var(ddof=1)), 0.0
    mean, over_seeds = differences.mean(), differences.mean(axis=1)
    residuals = differences - over_seeds[:, None] - over_images[None, :] + mean
    rest = float(np.square(residuals).sum() / ((seeds - 1) * (images - 1)))
    return images * float(over_seeds.var(ddof=1)), seeds * float(over_images.var(ddof=1)), rest


def _combined(squares: tuple[float, float, float], seeds: int, images: int) -> tuple[float, float]:
    """The variance of the mean and its degrees of freedom."""
    of_seeds, of_images, rest = squares
    if seeds == 1:
        return of_images / images, images - 1
    # Where seeds or images vary less than what is left, that much is their chance share.
    of_seeds, of_images = max(of_seeds, rest), max(of_images, rest)
    total = of_seeds + of_images - rest
    parts = (of_seeds**2 / (seeds - 1), of_images**2 / (images - 1), rest**2 / ((seeds - 1) * (images - 1)))
    return total / (seeds * images), total**2 / sum(parts) if sum(parts) else math.inf


def _interval(mean: float, variance: float, freedom: float, seeds: int) -> Difference:
    from scipy.stats import norm, t

    distribution = norm if math.isinf(freedom) else t(freedom)
    error = math.sqrt(variance)
    half = float(distribution.ppf(1 - LEVEL / 2)) * error
    p = 2 * float(distribution.sf(abs(mean) / error)) if error > 0 else float(mean == 0)
    return Difference(mean, max(-1.0, mean - half), min(1.0, mean + half), min(1.0, p), seeds)
