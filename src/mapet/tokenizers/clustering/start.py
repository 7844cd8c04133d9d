"""Where k-means starts: k random points, or greedy k-means++ (Arthur & Vassilvitskii 2007) on a sample of the points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.clustering.lloyd import Data
from mapet.tokenizers.clustering.nearest import full_float32, squared_distances

STARTS = ("k-means++", "random")
# k-means++ passes over its points k times, so it uses at most this many points for every centroid,
SEEDING_POINTS_PER_CENTROID = 32
MIN_SEEDING_POINTS = 8192
# and at no more than this many values (2 GiB), yet always at two points for every centroid.
MAX_SEEDING_VALUES = 2**29


def first_centroids(data: Data, k: int, start: str, seed: int, restart: int) -> Tensor:
    """The centroids (k, d) that a restart begins with, less the origin; the same however the points are spread over processes."""
    generator = seeded_generator(seed, "k-means", restart)
    if start == "random":
        return _sample(data, k, generator)
    most = max(MAX_SEEDING_VALUES // data.points.dim, 2 * k)
    size = min(data.total, max(SEEDING_POINTS_PER_CENTROID * k, MIN_SEEDING_POINTS), most)
    sample = _sample(data, size, generator)
    trials = 2 + int(math.log(k))
    draws = torch.rand(k, trials, generator=generator, dtype=torch.float64).to(data.device)
    with full_float32(data.device):
        return data.agree(plus_plus(sample, draws, size / data.total))


def _sample(data: Data, size: int, generator: torch.Generator) -> Tensor:
    """`size` of the centred points of all processes (size, d), in their order, in every process."""
    indices = torch.randperm(data.total, generator=generator)[:size].sort().values - data.first
    local = indices[(indices >= 0) & (indices < data.points.num_points)]
    return data.gather(data.centred(data.points.gather_rows(local).to(data.device)))


def plus_plus(points: Tensor, draws: Tensor, share: float) -> Tensor:
    """Greedy k-means++: of a few points drawn in proportion to their squared distance, the one that lowers the inertia most.

    A point stands for 1 / `share` others that lie near it, but not on it: what it gains by becoming a centroid itself counts only
    as the one point it is. Without that, a sample spends centroids on outliers which are not worth one among all points.

    Args:
        points: (n, d) float32, a sample.
        draws: (k, trials) float64 in [0, 1).
        share: Which part of all points the sample is.

    Returns:
        (k, d) of the points.
    """
    norms = points.square().sum(1)
    indices = torch.empty(len(draws), dtype=torch.int64, device=points.device)
    indices[0] = (draws[0, 0] * len(points)).long()
    distance = squared_distances(points, points, indices[:1])
    for step in range(1, len(draws)):
        cumulative = distance.double().cumsum(0)
        candidates = torch.searchsorted(cumulative, draws[step] * cumulative[-1], right=True).clamp_max(len(points) - 1)
        products = points[candidates] @ points.T
        new_distance = products.mul_(-2).add_(norms).add_(norms[candidates, None]).clamp_min_(0)
        new_distance = torch.minimum(new_distance, distance, out=new_distance)
        winner = torch.argmin(new_distance.sum(1) + (1 - share) * distance[candidates])
        indices[step] = candidates[winner]
        distance = new_distance[winner]
        distance[indices[step]] = 0.0
    return points[indices]
