"""k-means (Lloyd) in torch: on any device, over points in memory or in a file, in one process or several, resumable.

Start: greedy k-means++ or k random points (`start`). Clusters that lose all their points are re-seeded at the points
farthest from their centroids (`lloyd`). Several restarts; the lowest inertia wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mapet.errors import TokenizerError, nearest
from mapet.runtime.processes import gather_numbers, this_process
from mapet.runtime.progress import say
from mapet.tokenizers.clustering.lloyd import Data, exact_pass, few_values, inertia, moved, one_pass, pass_precision
from mapet.tokenizers.clustering.points import Points, as_points, blocks, fingerprint, placed
from mapet.tokenizers.clustering.start import STARTS, first_centroids
from mapet.tokenizers.clustering.state import State, StateFile

# From so many products in a pass on (points x dimensions x centroids), they are of bfloat16 where that is faster.
REDUCED_FROM = 2**31


@dataclass(frozen=True)
class KMeansResult:
    """The best of all restarts.

    Args:
        centroids: (k, d) float32.
        inertia: Sum over all points of the squared distance to the nearest of `centroids`, assigned in full float32.
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
    points: Tensor | Points,
    k: int,
    *,
    seed: int,
    iterations: int = 20,
    restarts: int = 1,
    start: str = "k-means++",
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    memory: int | None = None,
    checkpoint: str | Path | None = None,
    sharded: bool = False,
    on_iteration: Callable[[int, int, float], None] | None = None,
) -> KMeansResult:
    """Finds `k` centroids with a small sum of squared distances to `points`.

    Args:
        points: (n, d) float32 or float16 in memory, or `StoredPoints`.
        k: Number of centroids, at most n. Where fewer points differ, those are the centroids, and the rest repeats the first.
        seed: Determines every draw.
        iterations: At most so many moves of the centroids per restart.
        restarts: Independent starts.
        start: "k-means++" or "random".
        tolerance: A restart ends when the centroids' summed squared move is at most this times the mean variance of a dimension.
        device: Where to compute; by default where the points are. On a GPU points are kept there if they take at most half of it.
        memory: Bytes of main memory for stored points: those that take no more are loaded once, others read again in every pass.
        checkpoint: A file that keeps the state, from which the same call continues; it is left there at the end.
        sharded: The points of all processes are clustered together: every one gives its own points and gets the same result.
        on_iteration: Called with (restart, iteration, inertia) after every pass over the points.

    Raises:
        TokenizerError: Fewer points than `k`, NaN or infinity among them, an unknown `start`, or another clustering's checkpoint.
        StorageError: The checkpoint cannot be written.
    """
    if start not in STARTS:
        raise TokenizerError(f"k-means cannot start from '{start}'. {nearest(start, STARTS)}")
    if min(k, iterations, restarts) < 1:
        raise TokenizerError(f"k-means needs k, iterations and restarts of at least 1, not {k}, {iterations} and {restarts}.")
    data = _measured(_gathered(as_points(points), k, device, memory, sharded), k)
    settings = {"k": k, "seed": seed, "iterations": iterations, "restarts": restarts, "start": start, "tolerance": tolerance}
    if (values := few_values(data, k)) is not None:
        return _of_few_values(data, values, k)
    prints = gather_numbers(fingerprint(data.points)) if sharded else [fingerprint(data.points)]
    file = StateFile(checkpoint, {**settings, "points": data.total, "fingerprints": prints}, sharded)
    state = file.load(data.device)
    while state.restart < restarts:
        if state.centroids is None:
            state.centroids = first_centroids(data, k, start, seed, state.restart)
        with pass_precision(data):
            _restart(data, state, file, iterations, tolerance * data.variance, on_iteration)
        state.end_restart()
        file.save(state, now=True)
    assert state.best is not None
    centroids = data.restored(state.best)
    final, counts = exact_pass(data, centroids)
    return KMeansResult(centroids, final, len(state.best_history) - 1, counts, [*state.best_history[:-1], final])


def _of_few_values(data: Data, values: Tensor, k: int) -> KMeansResult:
    """The different values (v, d) of all points, v < k, as centroids."""
    say(f"The {data.total:,} points have {len(values):,} different values only: of {k:,} centroids no more are used.")
    final, counts = exact_pass(data, values)
    unused = k - len(values)
    centroids = torch.cat([values, values[:1].expand(unused, -1)])
    return KMeansResult(centroids, final, 0, torch.cat([counts, counts.new_zeros(unused)]), [final])


def _restart(
    data: Data,
    state: State,
    file: StateFile,
    iterations: int,
    smallest_move: float,
    report: Callable[[int, int, float], None] | None,
) -> None:
    """Alternates assignment and means until the centroids of `state` stand still."""
    assert state.centroids is not None
    while True:
        totals = one_pass(data, state.centroids)
        state.history.append(inertia(data, totals, state.centroids))
        if report:
            report(state.restart, state.moves, state.history[-1])
        if state.moves == iterations or (state.settled and bool((totals.counts > 0).all())):
            return
        centroids = moved(data, state.centroids, totals)
        state.settled = float((centroids - state.centroids).double().square().sum()) <= smallest_move
        if state.settled and torch.equal(centroids, state.centroids):
            return
        state.centroids, state.moves = centroids, state.moves + 1
        file.save(state)


def _gathered(points: Points, k: int, device: torch.device | str | None, memory: int | None, sharded: bool) -> Data:
    """The points where they are to be read from, among those of the other processes."""
    lengths = gather_numbers(points.num_points) if sharded else [points.num_points]
    dims = set(gather_numbers(points.dim)) if sharded else {points.dim}
    rank, processes = this_process().rank if sharded else 0, f" in {len(lengths)} processes" if sharded else ""
    if len(dims) > 1:
        raise TokenizerError(f"The points{processes} have {sorted(dims)} dimensions; to be clustered together they need the same.")
    if sum(lengths) < k:
        raise TokenizerError(
            f"k-means cannot find {k} centroids among {sum(lengths)} points{processes}. Lower k, or give more points."
        )
    place = torch.empty(0, device=device or points.resident or "cpu").device  # "cuda" becomes "cuda:0"
    return Data(placed(points, place, memory), place, sum(lengths), sum(lengths[:rank]), sharded)


def _measured(data: Data, k: int) -> Data:
    """`data` with origin and variance; refuses points that are not finite."""
    dim = data.points.dim
    total = torch.zeros(2, dim, dtype=torch.float64, device=data.device)
    for block in blocks(data.points, data.device):
        exact = block.double()
        total += torch.stack([exact.sum(0), exact.square_().sum(0)])
    data.sum(total)
    if not total.isfinite().all():
        broken = sum((~block.isfinite()).any(1).sum() for block in blocks(data.points, data.device))
        broken = int(data.sum(torch.as_tensor(broken, device=data.device)))
        raise TokenizerError(
            f"{broken} of the {data.total} points for k-means hold NaN or infinity; the features that made them are at fault."
        )
    mean, square = data.agree(total) / data.total
    variance = (square - mean.square()).clamp_min(0).mean()
    far = bool(mean.square().mean() > variance)  # else products lose nothing that matters by leaving the points as they are
    squares = data.total * dim * float(variance) if far else float(total[1].sum())
    reduced = data.total * dim * k >= REDUCED_FROM and _multiplies_bfloat16(data.device)
    return replace(data, origin=mean if far else None, variance=float(variance), squares=squares, reduced=reduced)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than those of float32 on `device`."""
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False))
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
