from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from mapet.errors import TokenizerError
from mapet.tokenizers.clustering import kmeans as module
from mapet.tokenizers.clustering import lloyd, nearest
from mapet.tokenizers.clustering import points as points_module
from mapet.tokenizers.clustering.kmeans import kmeans
from mapet.tokenizers.clustering.points import StoredPoints

DIGITS = torch.from_numpy(load_digits().data.astype(np.float32))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_at(monkeypatch, centroids: torch.Tensor) -> None:
    monkeypatch.setattr(module, "first_centroids", lambda data, *_: data.centred(centroids))


def direct_inertia(points: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(torch.cdist(points.double(), centroids.double()).square().amin(1).sum())


@pytest.mark.parametrize("k", [10, 50])
def test_inertia_within_one_percent_of_scikit_learn(k):
    ours = kmeans(DIGITS, k, iterations=100, restarts=4, seed=0)
    theirs = KMeans(k, n_init=4, max_iter=100, random_state=0).fit(DIGITS.numpy())
    assert ours.inertia <= 1.01 * theirs.inertia_


def test_random_start_with_restarts_comes_close():
    ours = kmeans(DIGITS, 10, iterations=100, restarts=4, start="random", seed=0)
    theirs = KMeans(10, n_init=4, random_state=0).fit(DIGITS.numpy())
    assert ours.inertia <= 1.01 * theirs.inertia_


def test_same_moves_as_scikit_learn_from_the_same_start(monkeypatch):
    first = DIGITS[:20].clone()
    start_at(monkeypatch, first)
    ours = kmeans(DIGITS, 20, iterations=7, tolerance=0.0, seed=0)
    theirs = KMeans(20, init=first.numpy(), n_init=1, max_iter=7, tol=0.0, algorithm="lloyd").fit(DIGITS.numpy())
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, atol=1e-4)


def test_result_describes_its_centroids():
    result = kmeans(DIGITS, 12, iterations=5, seed=0)
    assert result.inertia == pytest.approx(direct_inertia(DIGITS, result.centroids), rel=1e-6)
    assert result.inertia == result.history[-1]
    assert result.history == sorted(result.history, reverse=True)
    assert result.iterations == 5
    assert len(result.history) == 6
    assert int(result.counts.sum()) == len(DIGITS)
    assert result.centroids.dtype == torch.float32


def test_inertia_does_not_suffer_from_a_far_origin():
    near = kmeans(DIGITS, 10, iterations=20, seed=0)
    far = kmeans(DIGITS + 4096.0, 10, iterations=20, seed=0)
    assert far.inertia == pytest.approx(near.inertia, rel=0.02)


def test_same_generator_same_result_and_chunks_change_nothing(monkeypatch):
    whole = kmeans(DIGITS, 10, iterations=5, seed=3)
    monkeypatch.setitem(nearest.CHUNK_VALUES, "cpu", 5000)
    monkeypatch.setitem(points_module.BLOCK_VALUES, "cpu", 50_000)
    monkeypatch.setattr(lloyd, "FLOAT32_SUMS", 1000)
    chunked = kmeans(DIGITS, 10, iterations=5, seed=3)
    torch.testing.assert_close(chunked.centroids, whole.centroids)
    assert not torch.equal(kmeans(DIGITS, 10, iterations=5, seed=4).centroids, chunked.centroids)


def test_the_best_restart_wins():
    reported: list[tuple[int, int, float]] = []
    result = kmeans(
        DIGITS,
        10,
        iterations=4,
        restarts=3,
        start="random",
        seed=0,
        on_iteration=lambda *facts: reported.append(facts),
    )
    last = {restart: inertia for restart, _, inertia in reported}
    assert sorted(last) == [0, 1, 2]
    assert result.inertia == pytest.approx(min(last.values()), rel=1e-6)
    assert min(last.values()) < max(last.values()) * 0.999
    assert [iteration for restart, iteration, _ in reported if restart == 1] == [0, 1, 2, 3, 4]


def test_empty_clusters_are_seeded_again(monkeypatch):
    centres = torch.arange(6).float()[:, None] * 100
    points = (centres.repeat(30, 1) + torch.randn(180, 1, generator=seeded())).contiguous()
    start_at(monkeypatch, points[:1].repeat(6, 1) + torch.tensor([[0.0], *[[-1e6]] * 5]))
    result = kmeans(points, 6, iterations=50, seed=0)
    assert int((result.counts == 0).sum()) == 0
    assert result.inertia < points.var() * 180


def test_fewer_distinct_points_than_clusters_ends_with_unused_ones():
    points = torch.tensor([[0.0], [1.0], [2.0]]).repeat(20, 1)
    result = kmeans(points, 5, seed=0)
    assert result.inertia == 0.0
    assert int((result.counts > 0).sum()) == 3


def test_as_many_points_as_clusters():
    result = kmeans(DIGITS[:16], 16, seed=0)
    assert result.inertia == pytest.approx(0.0, abs=1e-6)


def test_nan_points_are_counted_and_refused():
    points = DIGITS.clone()
    points[[3, 500], 7] = float("nan")
    with pytest.raises(TokenizerError, match=r"2 of the 1797 points .* NaN"):
        kmeans(points, 10, seed=0)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (DIGITS[:9], {}, "10 centroids among 9 points"),
        (DIGITS, {"start": "k-means"}, r"Did you mean 'k-means\+\+'"),
        (DIGITS, {"iterations": 0}, "at least 1"),
        (DIGITS.double(), {}, "float32"),
        (DIGITS[0], {}, r"\(n, d\)"),
    ],
)
def test_wrong_requests(points, options, message):
    with pytest.raises(TokenizerError, match=message):
        kmeans(points, 10, seed=0, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_and_takes_points_from_main_memory():
    cpu = kmeans(DIGITS, 10, iterations=20, seed=0)
    gpu = kmeans(DIGITS, 10, iterations=20, seed=0, device="cuda")
    assert gpu.inertia == pytest.approx(cpu.inertia, rel=0.02)


def faiss_inertia(
    points: torch.Tensor, k: int, iterations: int, first: torch.Tensor | None = None, restarts: int = 1, seed: int = 1
) -> float:
    """Of faiss with one thread: its OpenMP is not torch's."""
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    clustering = faiss.Kmeans(points.shape[1], k, niter=iterations, nredo=restarts, seed=seed, max_points_per_centroid=len(points))
    clustering.train(points.numpy(), init_centroids=None if first is None else first.numpy())
    return direct_inertia(points, torch.from_numpy(clustering.centroids))


@pytest.mark.parametrize("k", [10, 64])
def test_inertia_within_half_a_percent_of_faiss_from_the_same_start(monkeypatch, k):
    first = DIGITS[:k].clone()
    start_at(monkeypatch, first)
    ours = kmeans(DIGITS, k, iterations=20, seed=0, tolerance=0.0)
    assert ours.inertia == pytest.approx(faiss_inertia(DIGITS, k, 20, first), rel=0.005)


def test_restarts_do_as_well_as_those_of_faiss_and_scikit_learn():
    seeds = range(6)
    ours = [kmeans(DIGITS, 32, iterations=25, restarts=3, seed=seed).inertia for seed in seeds]
    theirs = [KMeans(32, n_init=3, max_iter=25, random_state=seed).fit(DIGITS.numpy()).inertia_ for seed in seeds]
    assert np.mean(ours) <= 1.005 * np.mean(theirs)
    assert np.mean(ours) <= 1.005 * np.mean([faiss_inertia(DIGITS, 32, 25, restarts=3, seed=seed) for seed in seeds])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_points_in_a_file_give_the_same_bits(tmp_path, monkeypatch, dtype):
    monkeypatch.setitem(points_module.BLOCK_VALUES, "cpu", 64 * 500)
    points = (DIGITS / 7).to(dtype)
    np.save(tmp_path / "points.npy", points.numpy())
    stored = StoredPoints(tmp_path / "points.npy")
    options = {"iterations": 4, "seed": 2}
    expected = kmeans(points, 10, **options)
    for memory in (None, 1000, 10**6):
        found = kmeans(stored, 10, memory=memory, **options)
        assert torch.equal(found.centroids, expected.centroids)
        assert (found.inertia, found.history) == (expected.inertia, expected.history)


def test_a_pass_knows_its_inertia_without_measuring_distances():
    result = kmeans(DIGITS, 12, iterations=5, seed=0)
    again = kmeans(DIGITS, 12, iterations=4, seed=0)
    assert result.history[4] == pytest.approx(again.inertia, rel=1e-6)
    assert result.history[4] != again.history[4]  # the last one is measured


def test_bfloat16_products_find_centroids_as_good(monkeypatch):
    exact = kmeans(DIGITS, 32, iterations=20, seed=0)
    monkeypatch.setattr(module, "REDUCED_FROM", 0)
    before = torch.get_float32_matmul_precision()
    reduced = kmeans(DIGITS, 32, iterations=20, seed=0)
    assert torch.get_float32_matmul_precision() == before
    assert reduced.inertia == pytest.approx(exact.inertia, rel=0.01)
    assert reduced.inertia == pytest.approx(direct_inertia(DIGITS, reduced.centroids), rel=1e-6)


def test_infinity_from_float16_is_counted(tmp_path):
    points = DIGITS.half()
    points[7] *= 60_000
    np.save(tmp_path / "points.npy", points.numpy())
    with pytest.raises(TokenizerError, match="1 of the 1797 points"):
        kmeans(StoredPoints(tmp_path / "points.npy"), 10, seed=0)


def test_f22_two_values_among_many_points_take_no_time(capsys) -> None:
    points = torch.randn(2, 108, generator=seeded())[torch.arange(100_000) % 2]
    began = time.perf_counter()
    result = kmeans(points, 512, iterations=20, restarts=3, seed=0)
    assert len(nearest.nearest_centroid(points, result.centroids).unique()) == 2
    assert time.perf_counter() - began < 8
    assert result.counts[:3].tolist() == [50_000, 50_000, 0]
    assert torch.equal(result.centroids[:2], points[:2])
    assert "100,000 points have 2 different values only" in capsys.readouterr().err


@pytest.mark.parametrize("distinct", [1, 3])
def test_f22_fewer_distinct_points_than_clusters_settle_at_once(distinct: int) -> None:
    points = torch.arange(float(distinct))[torch.arange(3000) % distinct, None].expand(-1, 8)
    result = kmeans(points, 64, iterations=20, seed=0)
    assert int((result.counts > 0).sum()) == distinct
    assert result.inertia < 1e-6
    assert result.iterations < 10
