"""k-means in each of several processes that hold shards of different lengths of points in sixty clouds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mapet.errors import TokenizerError
from mapet.runtime.processes import Processes, process_group, this_process
from mapet.tokenizers.clustering import kmeans as module
from mapet.tokenizers.clustering import state as kmeans_state
from mapet.tokenizers.clustering.kmeans import KMeansResult, kmeans
from mapet.tokenizers.clustering.points import StoredPoints

_DRAW = torch.Generator().manual_seed(0)
_CENTRES = 16 * torch.rand(60, 64, generator=_DRAW)
_NOISE = 4 * torch.randn(1797, 64, generator=_DRAW)
POINTS = (_CENTRES[torch.randint(60, (1797,), generator=_DRAW)] + _NOISE).clamp(0, 16).round()
# k-means++, random points, one with clusters that run empty, and one whose points lie far from zero.
CASES: dict[str, dict[str, Any]] = {
    "k-means++": {"k": 10, "seed": 0, "iterations": 5, "restarts": 2},
    "random": {"k": 40, "seed": 1, "iterations": 5, "start": "random"},
    "empty": {"k": 12, "seed": 2, "iterations": 3, "start": "empty"},
    "far": {"k": 8, "seed": 3, "iterations": 4, "start": "random"},
}


def shard(points: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Shards in order, of different lengths; that of process 1 of three is empty."""
    ends = {1: [0, 1797], 2: [0, 500, 1797], 3: [0, 1100, 1100, 1797]}[processes.world]
    return points[ends[processes.rank] : ends[processes.rank + 1]]


def cluster(name: str, processes: Processes, **more: Any) -> KMeansResult:
    """One of the cases, in this process's shard."""
    options = CASES[name] | more
    points = POINTS + 1000.0 if name == "far" else POINTS
    if options.get("start") != "empty":
        return kmeans(shard(points, processes), sharded=processes.world > 1, **options)
    first, plain = POINTS[:12] + torch.tensor([[0.0], *[[1e4]] * 11]), module.first_centroids
    module.first_centroids = lambda data, *_: data.centred(first)
    try:
        return kmeans(shard(points, processes), sharded=processes.world > 1, **options | {"start": "random"})
    finally:
        module.first_centroids = plain


def save(result: KMeansResult, path: Path) -> None:
    tensors = {"centroids": result.centroids, "counts": result.counts}
    save_file({**tensors, "history": torch.tensor(result.history, dtype=torch.float64)}, path)


def cluster_all(folder: Path) -> dict[str, str]:
    """Every case; then requests that must be refused in every process."""
    with process_group("cpu") as processes:
        for name in CASES:
            save(cluster(name, processes), folder / f"{name}-{processes.rank}.safetensors")
        own = shard(POINTS, processes)
        np.save(folder / f"shard-{processes.rank}.npy", own.half().numpy())
        stored = kmeans(StoredPoints(folder / f"shard-{processes.rank}.npy"), 10, seed=0, iterations=5, restarts=2, sharded=True)
        save(stored, folder / f"stored-{processes.rank}.safetensors")
        broken = own.clone()
        broken[-1:] = float("nan")
        return {
            "too few": refusal(own[:4], 10),
            "nan": refusal(broken, 10),
            "dimensions": refusal(own[:, : 60 + processes.rank], 10),
        }


def refusal(points: torch.Tensor, k: int) -> str:
    try:
        kmeans(points, k, seed=0, sharded=True)
    except TokenizerError as error:
        return str(error)
    return "not refused"


def continue_all(folder: Path) -> str:
    """A clustering interrupted in all processes, continued from the state that the first one wrote."""
    kmeans_state.SECONDS_BETWEEN_STATES = 0.0

    def stop(restart: int, iteration: int, _: float) -> None:
        if (restart, iteration) == (1, 3):
            raise InterruptedError

    with process_group("cpu") as processes:
        own = folder / f"only process {processes.rank} sees this"
        try:
            cluster("k-means++", processes, checkpoint=own / "state", on_iteration=stop)
        except InterruptedError:
            passes: list[tuple[int, int]] = []
            continued = cluster(
                "k-means++", processes, checkpoint=own / "state", on_iteration=lambda r, i, _: passes.append((r, i))
            )
            save(continued, folder / f"continued-{processes.rank}.safetensors")
            return f"{passes[0]}, {'wrote' if own.exists() else 'wrote nothing'}"
    return "not interrupted"


def die(folder: Path) -> None:
    """Alone: killed in the second restart."""
    kmeans_state.SECONDS_BETWEEN_STATES = 0.0

    def kill(restart: int, iteration: int, _: float) -> None:
        if (restart, iteration) == (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)

    cluster("k-means++", this_process(), checkpoint=folder / "state", on_iteration=kill)
