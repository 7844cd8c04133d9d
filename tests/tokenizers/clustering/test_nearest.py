from __future__ import annotations

import pytest
import torch

from mapet.tokenizers.clustering import nearest
from mapet.tokenizers.clustering.nearest import full_float32, nearest_centroid


def exact_ids(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    differences = points.double()[:, None] - centroids.double()
    return differences.square().sum(2).argmin(1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_equals_float64_search(offset):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 12, generator=generator) + offset
    centroids = torch.randn(40, 12, generator=generator) + offset
    assert torch.equal(nearest_centroid(points, centroids), exact_ids(points, centroids))


def test_settles_points_that_lie_almost_midway():
    generator = torch.Generator().manual_seed(1)
    centroids = torch.randn(8, 6, generator=generator)
    middle = (centroids[2] + centroids[5]) / 2
    points = middle + 1e-7 * torch.randn(2000, 6, generator=generator)
    ids = nearest_centroid(points, centroids)
    assert torch.equal(ids, exact_ids(points, centroids))
    assert len(ids.unique()) > 1


def test_ties_go_to_the_lowest_id():
    centroids = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_centroid(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), centroids).tolist() == [1, 1]


@pytest.mark.parametrize("distinct", [1, 2, 7])
def test_f22_among_repeated_centroids_the_first_is_found_at_once(distinct: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(4)
    kinds = torch.randn(distinct, 16, generator=generator)
    centroids = kinds[torch.randint(distinct, (200,), generator=generator)]
    points = kinds[torch.randint(distinct, (500,), generator=generator)]
    assert torch.equal(nearest_centroid(points, centroids), exact_ids(points, centroids))
    settle, settled = nearest._settle, []
    monkeypatch.setattr(nearest, "_settle", lambda points, *rest: settled.append(len(points)) or settle(points, *rest))
    nearest_centroid(points, centroids)
    assert sum(settled) == 0  # else float64 differences of every pair of equals would be taken


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    points, centroids = torch.randn(500, 5, generator=generator), torch.randn(30, 5, generator=generator)
    whole = nearest_centroid(points, centroids)
    monkeypatch.setitem(nearest.CHUNK_VALUES, "cpu", 100)
    assert torch.equal(nearest_centroid(points, centroids), whole)


def test_a_single_centroid_and_no_points():
    centroids = torch.ones(1, 3)
    assert nearest_centroid(torch.zeros(2, 3), centroids).tolist() == [0, 0]
    assert nearest_centroid(torch.zeros(0, 3), centroids).shape == (0,)


def test_autocast_and_lower_precision_are_off_inside_and_back_afterwards():
    generator = torch.Generator().manual_seed(3)
    points, centroids = torch.randn(2000, 32, generator=generator), torch.randn(64, 32, generator=generator)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest_centroid(points, centroids), exact_ids(points, centroids))
            with full_float32(torch.device("cpu")):
                assert (points @ points.T).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
