"""Speed of k-means: ours with the points in memory and streamed from a file, faiss-cpu, scikit-learn.

    python benchmarks/kmeans.py [--points 200000 --dim 256 --clusters 1024] [--device cuda] [--out FILE.json]
    python benchmarks/kmeans.py --memory-peak [--memory 64]

A whole call is timed: `--iterations` moves from random points, with all checks, loading and the final assignment. The figure is
points x dimensions x clusters x iterations a second, and the quality the inertia relative to faiss (or the first method). Methods
take turns within every round; quote the ratios. Threads: OMP_NUM_THREADS.

`--memory-peak` clusters a file four times larger than `--memory` MiB in a fresh process, streamed and (for comparison) loaded, and
prints how far that raises the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import cpu_peak_mebibytes, print_cpu_peak, time_interleaved
from mapet.runtime.device import choose_device
from mapet.runtime.run_directory import describe_environment
from mapet.tokenizers.clustering.kmeans import kmeans
from mapet.tokenizers.clustering.points import StoredPoints

METHODS = ("ours", "ours streamed", "faiss", "scikit-learn")
PEAK_DIM, PEAK_CLUSTERS = 256, 256
Clustering = Callable[[], Tensor]


def write_points(path: Path, points: int, dim: int, dtype: type = np.float32) -> None:
    """A mixture of as many broad clusters as dimensions, written in parts."""
    draws = np.random.default_rng(0)
    centres = draws.normal(size=(dim, dim)).astype(np.float32)
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(points, dim))
    for start in range(0, points, 2**14):
        part = stored[start : start + 2**14]
        part[:] = centres[draws.integers(dim, size=len(part))] + draws.standard_normal(size=part.shape, dtype=np.float32)


def with_faiss(points: np.ndarray, clusters: int, iterations: int) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    found = faiss.Kmeans(points.shape[1], clusters, niter=iterations, max_points_per_centroid=len(points), seed=0)
    found.train(points)
    return torch.from_numpy(found.centroids)


def with_scikit_learn(points: np.ndarray, clusters: int, iterations: int) -> Tensor:
    from sklearn.cluster import KMeans

    options = {"n_init": 1, "max_iter": iterations, "tol": 0.0, "algorithm": "lloyd", "init": "random", "random_state": 0}
    return torch.from_numpy(KMeans(clusters, **options).fit(points).cluster_centers_)


def with_ours(points: Tensor | StoredPoints, clusters: int, iterations: int, device: torch.device) -> Tensor:
    options = {"iterations": iterations, "start": "random", "seed": 0, "tolerance": 0.0, "device": device}
    return kmeans(points, clusters, **options).centroids.cpu()


def make_methods(arguments: argparse.Namespace, path: Path, device: torch.device) -> dict[str, Clustering]:
    """The methods that were asked for, on the points in `path`."""
    points = np.load(path)
    size = (arguments.clusters, arguments.iterations)
    every: dict[str, Clustering] = {
        "ours": partial(with_ours, torch.from_numpy(points), *size, device),
        "ours streamed": partial(with_ours, StoredPoints(path), *size, device),
        "faiss": partial(with_faiss, points, *size),
        "scikit-learn": partial(with_scikit_learn, points, *size),
    }
    return {name: every[name] for name in arguments.methods.split(",")}


def compare(arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    """One row a method."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "points.npy"
        write_points(path, arguments.points, arguments.dim)
        methods = make_methods(arguments, path, device)
        times = time_interleaved(methods, 1, arguments.rounds, device)
        exact = torch.from_numpy(np.load(path))
        inertias = {name: inertia(exact, method()) for name, method in methods.items()}
    reference = "faiss" if "faiss" in methods else next(iter(methods))
    products = arguments.points * arguments.dim * arguments.clusters * arguments.iterations
    return [
        {
            "method": name,
            "seconds": statistics.median(own),
            "products_per_second": products / statistics.median(own),
            "speed": statistics.median(other / one for one, other in zip(own, times[reference], strict=True)),
            "inertia": inertias[name] / inertias[reference],
            "reference": reference,
        }
        for name, own in times.items()
    ]


def inertia(points: Tensor, centroids: Tensor) -> float:
    """Measured in the same way for all."""
    parts = (torch.cdist(part, centroids).amin(1).double().square().sum() for part in points.split(4096))
    return float(sum(parts))


def print_table(arguments: argparse.Namespace, rows: list[dict]) -> None:
    """The results as Markdown."""
    flop = 2 * arguments.points * arguments.dim * arguments.clusters
    print(f"\n{arguments.points} points x {arguments.dim} dimensions x {arguments.clusters} clusters: {flop:.2e} FLOP an iteration")
    print(
        f"\n| method | seconds for {arguments.iterations} iterations | products/s | FLOP/s | x {rows[0]['reference']} | inertia |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        rate = row["products_per_second"]
        print(
            f"| {row['method']} | {row['seconds']:.2f} | {rate:.3g} | {2 * rate:.3g} | {row['speed']:.2f} | {row['inertia']:.4f} |"
        )


def measure_peaks(memory: int, folder: Path | None) -> list[dict]:
    """Peak of resident memory above the start, streamed and loaded."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / "points.npy"
        points = 4 * memory * 2**20 // (2 * PEAK_DIM)
        write_points(path, points, PEAK_DIM, np.float16)
        words = {"streamed": str(memory), "loaded": str(4 * memory)}
        peaks = {name: cpu_peak_mebibytes(__file__, "--peak", str(path), allowed) for name, allowed in words.items()}
    facts = {"file_mib": 4 * memory, "allowed_mib": memory, "points": points, "dim": PEAK_DIM, "clusters": PEAK_CLUSTERS}
    return [{"method": name, "peak_mib": peak, **facts} for name, peak in peaks.items()]


def print_own_peak(path: str, memory: str) -> None:
    """For the fresh process: what a clustering adds, after a small one that loads the libraries."""
    kmeans(torch.rand(2000, PEAK_DIM), PEAK_CLUSTERS, seed=0, iterations=1)
    print_cpu_peak(lambda: kmeans(StoredPoints(path), PEAK_CLUSTERS, seed=0, iterations=2, memory=int(memory) * 2**20).centroids)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: all)")
    parser.add_argument("--folder", type=Path, help="where the file of points is written (default: the temporary folder)")
    parser.add_argument("--memory-peak", action="store_true", help="measure memory instead of time")
    parser.add_argument("--memory", type=int, default=64, help="MiB allowed for points, with --memory-peak")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_own_peak(*arguments.peak)
        return
    if arguments.memory_peak:
        rows = measure_peaks(arguments.memory, arguments.folder)
        for row in rows:
            print(f"{row['method']}: {row['peak_mib']:.0f} MiB for a file of {row['file_mib']} MiB, {row['allowed_mib']} allowed")
    else:
        rows = compare(arguments, choose_device(arguments.device))
        print_table(arguments, rows)
    if arguments.out:
        sizes = {name: getattr(arguments, name) for name in ("points", "dim", "clusters", "iterations", "rounds")}
        result = {"environment": describe_environment(), **({} if arguments.memory_peak else sizes), "rows": rows}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
