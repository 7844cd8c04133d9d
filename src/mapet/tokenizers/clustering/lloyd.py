"""One pass of Lloyd's algorithm over points that may lie anywhere: in memory, in a file, spread over processes.

A pass assigns every point to its nearest centroid and sums the points of each, block by block. With S, n and c the sum, count and
centroid of a cluster, the inertia is sum |x|^2 - sum (2 S.c - n |c|^2), so it costs nothing more and is exact for the assignment
whatever precision found it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.runtime.processes import all_sum_, broadcast_, gather_numbers, gather_rows
from mapet.tokenizers.clustering.nearest import CHUNK_VALUES, full_float32, nearest_centroid, squared_distances
from mapet.tokenizers.clustering.points import Points, blocks

# A tile with fewer points than this would spend its time on fetching the centroids.
MIN_TILE = 256
# Points summed in float32 before their sum is added to the total in float64.
FLOAT32_SUMS = 2**16


@dataclass(frozen=True)
class Data:
    """The points of one clustering.

    Args:
        points: Those of this process.
        device: Where to compute.
        total: Number of points of all processes.
        first: Number of points of the processes before this one.
        sharded: Whether all processes cluster their points together.
        origin: (d,) float64, what is subtracted from every point; None where the points lie around zero.
        variance: The mean variance of a dimension.
        squares: Sum of |x - origin|^2 over all points.
        reduced: Whether products of points and centroids are of bfloat16, summed in float32.
    """

    points: Points
    device: torch.device
    total: int
    first: int
    sharded: bool
    origin: Tensor | None = None
    variance: float = 0.0
    squares: float = 0.0
    reduced: bool = False

    def blocks(self) -> Iterator[Tensor]:
        """The points of this process less the origin, in float32 on the device."""
        return (self.centred(block) for block in blocks(self.points, self.device))

    def centred(self, points: Tensor) -> Tensor:
        """`points` (n, d) less the origin, in float32."""
        return points.float() if self.origin is None else points.float() - self.origin.float()

    def restored(self, centroids: Tensor) -> Tensor:
        """`centroids` (k, d) with the origin that the points have, in float32."""
        return centroids if self.origin is None else (centroids.double() + self.origin.float().double()).float()

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, summed in place over all processes that cluster together."""
        return all_sum_(tensor) if self.sharded else tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes that cluster together."""
        return gather_rows(tensor) if self.sharded else tensor

    def agree(self, tensor: Tensor) -> Tensor:
        """The first process's `tensor`: whatever hardware the others have, all take the same turns."""
        return broadcast_(tensor) if self.sharded else tensor


@contextmanager
def pass_precision(data: Data) -> Iterator[None]:
    """float32 inside, without TF32; where `data.reduced`, a CPU multiplies float32 matrices as bfloat16, summed in float32."""
    with full_float32(data.device):
        if data.reduced and data.device.type == "cpu":
            torch.set_float32_matmul_precision("medium")  # full_float32 puts back what was set before
        yield


class Assigner:
    """Finds nearest centroids by |c|^2 - 2 x.c, to the precision of the pass.

    Args:
        centroids: (k, d) float32.
        reduced: As in `Data`.
    """

    def __init__(self, centroids: Tensor, reduced: bool) -> None:
        device = centroids.device.type
        self._norms = centroids.square().sum(1)
        self._bfloat16 = reduced and device == "cuda"
        self._weights = (centroids.bfloat16() if self._bfloat16 else centroids).mul(-2).T
        self._rows = max(MIN_TILE, CHUNK_VALUES.get(device, CHUNK_VALUES["cuda"]) // len(centroids))
        self._buffer = centroids.new_empty(0 if self._bfloat16 else self._rows, len(centroids))  # fresh memory costs a CPU more

    def __call__(self, points: Tensor) -> Tensor:
        """Ids (n,) int64 of `points` (n, d) float32."""
        return torch.cat([self._scores(tile).min(1).indices for tile in points.split(self._rows)])

    def _scores(self, tile: Tensor) -> Tensor:
        if self._bfloat16:
            return torch.mm(tile.bfloat16(), self._weights, out_dtype=torch.float32).add_(self._norms)
        return torch.addmm(self._norms, tile, self._weights, out=self._buffer[: len(tile)])


@dataclass(frozen=True)
class Totals:
    """What one pass found, over all processes.

    Args:
        sums: (k, d) float64, of the centred points of each cluster.
        counts: (k,) int64.
    """

    sums: Tensor
    counts: Tensor


def one_pass(data: Data, centroids: Tensor) -> Totals:
    """Assigns all points to `centroids` (k, d) float32 and sums them; on a GPU nothing waits for it before the end."""
    assign = Assigner(centroids, data.reduced)
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    recent, rows = torch.zeros_like(centroids), 0
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=centroids.device)
    for block in data.blocks():
        ids = assign(block)
        add_rows(recent, ids, block)
        counts.index_add_(0, ids, torch.ones_like(ids))
        rows += len(block)
        if rows >= FLOAT32_SUMS:
            sums += recent
            recent.zero_()
            rows = 0
    sums += recent
    return Totals(data.sum(sums), data.sum(counts))


def inertia(data: Data, totals: Totals, centroids: Tensor) -> float:
    """Sum of squared distances to the `centroids` (k, d) that `totals` were found with."""
    exact = centroids.double()
    gained = 2 * torch.dot(exact.flatten(), totals.sums.flatten()) - torch.dot(totals.counts.double(), exact.square_().sum(1))
    return max(data.squares - float(data.agree(gained)), 0.0)


def add_rows(sums: Tensor, ids: Tensor, points: Tensor) -> None:
    """Adds every point (n, d) to the row of `sums` (k, d) that `ids` (n,) names, always in the same order."""
    if sums.device.type == "cpu":
        sums.index_add_(0, ids, points)
    else:
        sums += summed_by_id(ids, points, len(sums))


def summed_by_id(ids: Tensor, points: Tensor, k: int) -> Tensor:
    """The sums (k, d) of points with equal ids; on CUDA `index_add_` would add them in an order that changes from run to run."""
    ordered, order = ids.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(k, device=ids.device))
    return F.embedding_bag(order, points, starts, mode="sum")


def few_values(data: Data, k: int) -> Tensor | None:
    """The different values (n, d) float32 of the points of all processes, as they come; None where there are `k` or more."""
    local_values: dict[bytes, None] = {}
    for row in _rows(data):
        local_values[row.tobytes()] = None
        if len(local_values) == k:
            break
    if max(gather_numbers(len(local_values)) if data.sharded else [len(local_values)]) >= k:
        return None
    everywhere = data.gather(_values(local_values, data))
    distinct = dict.fromkeys(row.tobytes() for row in everywhere.cpu().numpy())
    return None if len(distinct) >= k else _values(distinct, data)


def _rows(data: Data) -> Iterator[np.ndarray]:
    """The points of this process, one by one; -0 becomes 0."""
    for block in blocks(data.points, data.device):
        for rows in block.split(MIN_TILE):
            yield from (rows.float().cpu() + 0.0).numpy()


def _values(rows: Iterable[bytes], data: Data) -> Tensor:
    values = np.array([np.frombuffer(row, np.float32) for row in rows], np.float32)
    return torch.from_numpy(values.reshape(-1, data.points.dim)).to(data.device)


def moved(data: Data, centroids: Tensor, totals: Totals) -> Tensor:
    """The mean of each cluster (k, d); clusters without points take the points farthest from their centroids.

    A cluster keeps its centroid if no point is left for it that lies elsewhere than its centroid.
    """
    sums, counts = totals.sums.clone(), totals.counts.clone()
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        ids, points = farthest(data, centroids, len(empty))
        refilled = empty[: len(ids)]
        sums.index_add_(0, ids, points.double(), alpha=-1)
        counts.index_add_(0, ids, torch.ones_like(ids), alpha=-1)
        sums[refilled], counts[refilled] = points.double(), 1
    means = sums.div_(counts.clamp_min(1)[:, None]).float()
    return data.agree(torch.where(counts[:, None] > 0, means, centroids))


def farthest(data: Data, centroids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` points that lie farthest from their centroids, of equally far ones the first; none that lies on its own.

    Returns:
        The ids (n,) of their clusters and the centred points (n, d).
    """
    assign = Assigner(centroids, data.reduced)
    best = (centroids.new_empty(0), torch.empty(0, dtype=torch.int64, device=centroids.device), centroids[:0])
    for block in data.blocks():
        ids = assign(block)
        distances = squared_distances(block, centroids, ids)
        far = distances.sort(descending=True, stable=True).indices[:count]
        best = _first((distances[far], ids[far], block[far]), best, count)
    best = tuple(data.gather(part) for part in best)
    order = best[0].sort(descending=True, stable=True).indices[:count]
    order = order[best[0][order] > 0]
    return best[1][order], best[2][order]


def _first(candidates: tuple[Tensor, ...], before: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The `count` farthest of two selections; of equally far points those of the earlier blocks."""
    both = tuple(torch.cat(parts) for parts in zip(before, candidates, strict=True))
    order = both[0].sort(descending=True, stable=True).indices[:count]
    return tuple(part[order] for part in both)


def exact_pass(data: Data, centroids: Tensor) -> tuple[float, Tensor]:
    """Inertia and counts (k,) of `centroids` (k, d), which have their origin, as encoding with them will find: in full float32."""
    inertia = torch.zeros((), dtype=torch.float64, device=centroids.device)
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=centroids.device)
    with full_float32(data.device):
        for block in blocks(data.points, data.device):
            points = block.float()
            ids = nearest_centroid(points, centroids)
            inertia += squared_distances(points, centroids, ids).sum(dtype=torch.float64)
            counts.index_add_(0, ids, torch.ones_like(ids))
    return float(data.sum(inertia)), data.sum(counts)
