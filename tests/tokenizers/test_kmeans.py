from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from mapet.errors import TokenizerError
from mapet.tokenizers import kmeans as module
from mapet.tokenizers import nearest
from mapet.tokenizers.kmeans import kmeans

DIGITS = torch.from_numpy(load_digits().data.astype(np.float32))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def direct_inertia(points: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(torch.cdist(points.double(), centroids.double()).square().amin(1).sum())


@pytest.mark.parametrize("k", [10, 50])
def test_inertia_within_one_percent_of_scikit_learn(k):
    ours = kmeans(DIGITS, k, iterations=100, restarts=4, generator=seeded())
    theirs = KMeans(k, n_init=4, max_iter=100, random_state=0).fit(DIGITS.numpy())
    assert ours.inertia <= 1.01 * theirs.inertia_


def test_random_start_with_restarts_comes_close():
    ours = kmeans(DIGITS, 10, iterations=100, restarts=4, start="random", generator=seeded())
    theirs = KMeans(10, n_init=4, random_state=0).fit(DIGITS.numpy())
    assert ours.inertia <= 1.01 * theirs.inertia_


def test_same_moves_as_scikit_learn_from_the_same_start(monkeypatch):
    first = DIGITS[:20].clone()
    monkeypatch.setattr(module, "_start", lambda *_: first)
    ours = kmeans(DIGITS, 20, iterations=7, tolerance=0.0, generator=seeded())
    theirs = KMeans(20, init=first.numpy(), n_init=1, max_iter=7, tol=0.0, algorithm="lloyd").fit(DIGITS.numpy())
    np.testing.assert_allclose(ours.centroids.numpy(), theirs.cluster_centers_, atol=1e-4)


def test_result_describes_its_centroids():
    result = kmeans(DIGITS, 12, iterations=5, generator=seeded())
    assert result.inertia == pytest.approx(direct_inertia(DIGITS, result.centroids), rel=1e-6)
    assert result.inertia == result.history[-1]
    assert result.history == sorted(result.history, reverse=True)
    assert result.iterations == 5
    assert len(result.history) == 6
    assert int(result.counts.sum()) == len(DIGITS)
    assert result.centroids.dtype == torch.float32


def test_inertia_does_not_suffer_from_a_far_origin():
    near = kmeans(DIGITS, 10, iterations=20, generator=seeded())
    far = kmeans(DIGITS + 4096.0, 10, iterations=20, generator=seeded())
    assert far.inertia == pytest.approx(near.inertia, rel=0.02)


def test_same_generator_same_result_and_chunks_change_nothing(monkeypatch):
    whole = kmeans(DIGITS, 10, iterations=5, generator=seeded(3))
    monkeypatch.setitem(nearest.CHUNK_VALUES, "cpu", 50_000)
    chunked = kmeans(DIGITS, 10, iterations=5, generator=seeded(3))
    torch.testing.assert_close(chunked.centroids, whole.centroids)
    assert not torch.equal(kmeans(DIGITS, 10, iterations=5, generator=seeded(4)).centroids, chunked.centroids)


def test_the_best_restart_wins():
    reported: list[tuple[int, int, float]] = []
    result = kmeans(
        DIGITS,
        10,
        iterations=4,
        restarts=3,
        start="random",
        generator=seeded(),
        on_iteration=lambda *facts: reported.append(facts),
    )
    last = {restart: inertia for restart, _, inertia in reported}
    assert sorted(last) == [0, 1, 2]
    assert result.inertia == min(last.values())
    assert [iteration for restart, iteration, _ in reported if restart == 1] == [0, 1, 2, 3, 4]


def test_empty_clusters_are_seeded_again(monkeypatch):
    centres = torch.arange(6).float()[:, None] * 100
    points = (centres.repeat(30, 1) + torch.randn(180, 1, generator=seeded())).contiguous()
    monkeypatch.setattr(module, "_start", lambda *_: points[:1].repeat(6, 1) + torch.tensor([[0.0], *[[-1e6]] * 5]))
    result = kmeans(points, 6, iterations=50, generator=seeded())
    assert int((result.counts == 0).sum()) == 0
    assert result.inertia < points.var() * 180


def test_fewer_distinct_points_than_clusters_ends_with_unused_ones():
    points = torch.tensor([[0.0], [1.0], [2.0]]).repeat(20, 1)
    result = kmeans(points, 5, generator=seeded())
    assert result.inertia == 0.0
    assert int((result.counts > 0).sum()) == 3


def test_as_many_points_as_clusters():
    result = kmeans(DIGITS[:16], 16, generator=seeded())
    assert result.inertia == pytest.approx(0.0, abs=1e-6)


def test_nan_points_are_counted_and_refused():
    points = DIGITS.clone()
    points[[3, 500], 7] = float("nan")
    with pytest.raises(TokenizerError, match=r"2 of the 1797 points .* NaN"):
        kmeans(points, 10, generator=seeded())


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (DIGITS[:9], {}, "10 centroids among 9 points"),
        (DIGITS, {"start": "k-means"}, r"Did you mean 'k-means\+\+'"),
        (DIGITS, {"iterations": 0}, "at least 1"),
        (DIGITS.double(), {}, "float32"),
    ],
)
def test_wrong_requests(points, options, message):
    with pytest.raises(TokenizerError, match=message):
        kmeans(points, 10, generator=seeded(), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_and_takes_points_from_main_memory():
    cpu = kmeans(DIGITS, 10, iterations=20, generator=seeded())
    gpu = kmeans(DIGITS, 10, iterations=20, generator=seeded(), device="cuda")
    assert gpu.inertia == pytest.approx(cpu.inertia, rel=0.02)
