"""Which centroid is nearest: chunked, so that memory stays bounded, and independent of how points are batched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Values of one (points, centroids) score matrix: small enough for a CPU's cache, large enough to keep a GPU busy.
CHUNK_VALUES = {"cpu": 2**20, "cuda": 2**27}
# Rounding error of a score, relative to the squared norms it is made of (eight times the spacing of float32).
SCORE_ROUNDING = 2.0**-20


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside the block neither autocast nor TF32 rounds float32 products, so that ids do not depend on training's precision."""
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def chunks(num_points: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of `num_points` rows so that rows x `width` values stay within the bound of `device`."""
    rows = max(1, CHUNK_VALUES.get(device.type, CHUNK_VALUES["cuda"]) // width)
    return (slice(start, min(start + rows, num_points)) for start in range(0, num_points, rows))


@torch.no_grad()
def nearest_centroid(points: Tensor, centroids: Tensor) -> Tensor:
    """The id of the centroid nearest to each point in squared Euclidean distance; the lowest id where several are equally near.

    Args:
        points: (n, d) float32, on any device.
        centroids: (k, d) float32; its device does the work.

    Returns:
        (n,) int64 ids, on the device of `centroids`.
    """
    device = centroids.device
    ids = torch.empty(len(points), dtype=torch.int64, device=device)
    origin = centroids.mean(0)  # the products below lose least when it lies in the middle
    with full_float32(device):
        centred = centroids - origin
        norms = centred.square().sum(1)
        for rows in chunks(len(points), max(centroids.shape), device):
            ids[rows] = _nearest(points[rows].to(device), centroids, origin, centred, norms)
    return ids


def squared_distances(points: Tensor, centroids: Tensor, ids: Tensor) -> Tensor:
    """The squared distance of each point (n, d) to its own centroid (k, d), float32, without cancellation."""
    return (points - centroids[ids]).square_().sum(1)


def _nearest(points: Tensor, centroids: Tensor, origin: Tensor, centred: Tensor, norms: Tensor) -> Tensor:
    """Ids from one matrix product; points whose two best scores differ by no more than rounding are settled in float64."""
    near = points - origin
    scores = torch.addmm(norms, near, centred.T, alpha=-2)
    best, ids = scores.min(1)
    margin = SCORE_ROUNDING * (near.square().sum(1) + norms.max())
    second = scores.scatter_(1, ids[:, None], float("inf")).amin(1)
    scores.scatter_(1, ids[:, None], best[:, None])
    doubtful = (second - best <= margin).nonzero()[:, 0]
    if 16 * len(doubtful) > len(points) and len(first := _first_of_equals(centroids)) < len(centroids):
        return first[_nearest(points, centroids[first], origin, centred[first], norms[first])]
    for rows in doubtful.split(256):
        candidates = scores[rows] <= (best + margin)[rows, None]
        ids[rows] = _settle(points[rows], centroids, candidates)
    return ids


def _first_of_equals(centroids: Tensor) -> Tensor:
    """The ids, ascending, of centroids (k, d) that equal none before them: of equals, no other is ever the nearest."""
    distinct, place = torch.unique(centroids, dim=0, return_inverse=True)
    ids = torch.arange(len(centroids), device=centroids.device)
    return torch.full_like(ids[: len(distinct)], len(ids)).scatter_reduce_(0, place, ids, "amin").sort().values


def _settle(points: Tensor, centroids: Tensor, candidates: Tensor) -> Tensor:
    """The nearest of each point's `candidates` (n, k) bool, by differences in float64."""
    row, column = candidates.nonzero(as_tuple=True)
    exact = torch.full(candidates.shape, float("inf"), dtype=torch.float64, device=points.device)
    for pairs in chunks(len(row), centroids.shape[1], points.device):
        difference = points[row[pairs]].double() - centroids[column[pairs]].double()
        exact[row[pairs], column[pairs]] = difference.square_().sum(1)
    return exact.argmin(1)
