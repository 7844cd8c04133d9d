"""k-means (Lloyd) in torch, on any device, in bounded memory.

Start: greedy k-means++ (Arthur & Vassilvitskii 2007) on a sample of the points, or k random points. Clusters that lose all their
points are re-seeded at the points farthest from their centroids. Several restarts; the lowest inertia wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mapet.errors import TokenizerError, nearest
from mapet.tokenizers.nearest import chunks, full_float32, nearest_centroid, squared_distances

STARTS = ("k-means++", "random")
# k-means++ passes over its points k times, so it looks at no more than this many points for every centroid.
SEEDING_POINTS_PER_CENTROID = 32
MIN_SEEDING_POINTS = 8192


@dataclass(frozen=True)
class KMeansResult:
    """The best of all restarts.

    Args:
        centroids: (k, d) float32.
        inertia: Sum over all points of the squared distance to the nearest of `centroids`.
        iterations: How often the centroids moved.
        counts: (k,) int64, points of each centroid.
        history: Inertia before each move, then the final one.
    """

    centroids: Tensor
    inertia: float
    iterations: int
    counts: Tensor
    history: list[float]


@torch.no_grad()
def kmeans(
    points: Tensor,
    k: int,
    *,
    iterations: int = 20,
    restarts: int = 1,
    start: str = "k-means++",
    generator: torch.Generator,
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    on_iteration: Callable[[int, int, float], None] | None = None,
) -> KMeansResult:
    """Finds `k` centroids with a small sum of squared distances to `points`.

    Args:
        points: (n, d) float32; they may stay in main memory while `device` works on one chunk after the other.
        k: Number of centroids, at most n.
        iterations: At most so many moves of the centroids per restart.
        restarts: Independent starts.
        start: "k-means++" or "random".
        generator: Source of all draws, on any device.
        tolerance: A restart ends when the centroids' summed squared move is at most this times the mean variance of a dimension.
        device: Where to compute; by default where the points are.
        on_iteration: Called with (restart, iteration, inertia) after every pass over the points.

    Raises:
        TokenizerError: Fewer points than `k`, NaN or infinity among them, or an unknown `start`.
    """
    device = points.device if device is None else torch.device(device)
    variance = _check(points, k, start, iterations, restarts)
    best: KMeansResult | None = None
    with full_float32(device):
        for restart in range(restarts):
            centroids = _start(points, k, start, generator, device)
            report = (lambda i, inertia, r=restart: on_iteration(r, i, inertia)) if on_iteration else None
            result = _lloyd(points, centroids, iterations, tolerance * variance, report)
            if best is None or result.inertia < best.inertia:
                best = result
    assert best is not None
    return best


def _check(points: Tensor, k: int, start: str, iterations: int, restarts: int) -> float:
    """Refuses what cannot be clustered; returns the mean variance of a dimension."""
    if start not in STARTS:
        raise TokenizerError(f"k-means cannot start from '{start}'. {nearest(start, STARTS)}")
    if min(k, iterations, restarts) < 1:
        raise TokenizerError(f"k-means needs k, iterations and restarts of at least 1, not {k}, {iterations} and {restarts}.")
    if points.ndim != 2 or points.dtype != torch.float32:
        raise TokenizerError(f"k-means takes points of shape (n, d) in float32, not {tuple(points.shape)} in {points.dtype}.")
    if len(points) < k:
        raise TokenizerError(f"k-means cannot find {k} centroids among {len(points)} points. Lower k, or give more points.")
    total = torch.zeros(2, points.shape[1], dtype=torch.float64, device=points.device)
    for rows in chunks(len(points), points.shape[1], points.device):
        chunk = points[rows].double()
        total += torch.stack([chunk.sum(0), chunk.square().sum(0)])
    if not total.isfinite().all():
        broken = int((~points.isfinite()).any(1).sum())
        raise TokenizerError(
            f"{broken} of the {len(points)} points for k-means hold NaN or infinity; the features that made them are at fault."
        )
    mean, square = total / len(points)
    return float((square - mean.square()).clamp_min(0).mean())


def _draw(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform float64 draws in [0, 1) on `device`, the same ones whatever the device is."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(device)


def _start(points: Tensor, k: int, start: str, generator: torch.Generator, device: torch.device) -> Tensor:
    """The first centroids (k, d)."""
    size = k if start == "random" else min(len(points), max(SEEDING_POINTS_PER_CENTROID * k, MIN_SEEDING_POINTS))
    chosen = torch.randperm(len(points), generator=generator, device=generator.device)[:size]
    sample = points[chosen.to(points.device)].to(device)
    return sample if start == "random" else _plus_plus(sample, k, generator)


def _plus_plus(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few points drawn in proportion to their squared distance, the one that lowers the inertia most."""
    trials = 2 + int(math.log(k))
    draws = _draw((k, trials), generator, points.device)
    points_ = points - points.mean(0)
    norms = points_.square().sum(1)
    chosen = torch.empty(k, dtype=torch.int64, device=points.device)
    chosen[0] = (draws[0, 0] * len(points)).long()
    distance = squared_distances(points_, points_, chosen[:1])
    for step in range(1, k):
        cumulative = distance.double().cumsum(0)
        candidates = torch.searchsorted(cumulative, draws[step] * cumulative[-1], right=True).clamp_max(len(points) - 1)
        products = points_[candidates] @ points_.T
        offered = (norms + norms[candidates, None] - 2 * products).clamp_min(0)
        offered = torch.minimum(offered, distance)
        winner = offered.sum(1).argmin()
        chosen[step] = candidates[winner]
        distance = offered[winner]
        distance[chosen[step]] = 0.0
    return points[chosen]


def _lloyd(
    points: Tensor,
    centroids: Tensor,
    iterations: int,
    smallest_move: float,
    report: Callable[[int, float], None] | None,
) -> KMeansResult:
    """Alternates assignment and means until the centroids stand still."""
    history: list[float] = []
    k, moves, settled = len(centroids), 0, False
    while True:
        ids, distances = _assign(points, centroids)
        history.append(float(distances.sum(dtype=torch.float64)))
        if report:
            report(moves, history[-1])
        counts = torch.bincount(ids, minlength=k)
        if moves == iterations or (settled and bool((counts > 0).all())):
            return KMeansResult(centroids, history[-1], moves, counts, history)
        _refill(ids, distances, counts)
        moved = _means(points, ids, centroids)
        settled = float((moved - centroids).double().square().sum()) <= smallest_move
        if settled and torch.equal(moved, centroids):
            return KMeansResult(centroids, history[-1], moves, counts, history)
        centroids, moves = moved, moves + 1


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (n,) and squared distances (n,) of the nearest centroids."""
    ids = nearest_centroid(points, centroids)
    distances = torch.empty(len(points), device=centroids.device)
    for rows in chunks(len(points), centroids.shape[1], centroids.device):
        distances[rows] = squared_distances(points[rows].to(centroids.device), centroids, ids[rows])
    return ids, distances


def _refill(ids: Tensor, distances: Tensor, counts: Tensor) -> None:
    """Gives every empty cluster one of the points farthest from their centroids; changes `ids`."""
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        far = distances.topk(len(empty))
        useful = far.values > 0
        ids[far.indices[useful]] = empty[useful]


def _means(points: Tensor, ids: Tensor, centroids: Tensor) -> Tensor:
    """The mean of each cluster (k, d), summed in float64; a cluster without points keeps its centroid."""
    k, device = len(centroids), centroids.device
    sums = torch.zeros(centroids.shape, dtype=torch.float64, device=device)
    for rows in chunks(len(points), centroids.shape[1], device):
        sums.index_add_(0, ids[rows], points[rows].to(device).double())
    counts = torch.bincount(ids, minlength=k)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), centroids.double()).float()
