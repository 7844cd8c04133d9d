from __future__ import annotations

import pytest
import torch

from mapet.tokenizers.clustering import nearest
from mapet.tokenizers.scoring.centroids import CentroidDistances


def naive(points: torch.Tensor, centroids: torch.Tensor) -> tuple[float, float, int]:
    distances = [[float((point - centroid).double().norm()) for centroid in centroids] for point in points]
    own = sum(min(row) for row in distances) / len(points)
    margins = [1 - sorted(row)[0] / sorted(row)[1] for row in distances]
    pairs = [float((a - b).double().norm()) for i, a in enumerate(centroids) for j, b in enumerate(centroids) if i != j]
    far = sum(min(row[code] for row in distances) > own for code in range(len(centroids)))
    return own / (sum(pairs) / len(pairs)), sum(margins) / len(points), far


def test_distances_equal_naive_ones_in_any_chunks(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    centroids = torch.randn(7, 5, generator=draws)
    centroids[6] += 20
    points = torch.randn(43, 5, generator=draws)
    monkeypatch.setitem(nearest.CHUNK_VALUES, "cpu", 21)
    counted = CentroidDistances(centroids)
    counted.add(points[:40].view(2, 4, 5, 5))
    counted.add(points[40:])
    score, expected = counted.score(), naive(points, centroids)
    assert (score.own_distance, score.margin) == pytest.approx(expected[:2], rel=1e-5)
    assert score.far_codes == expected[2] >= 1


def test_points_on_centroids():
    centroids = torch.eye(4)
    counted = CentroidDistances(centroids)
    counted.add(centroids.repeat(3, 1))
    score = counted.score()
    assert score.own_distance == pytest.approx(0, abs=1e-3)
    assert score.margin == pytest.approx(1, abs=1e-3)
    assert score.far_codes == 0


def test_equal_centroids_do_not_divide_by_zero():
    counted = CentroidDistances(torch.zeros(3, 2))
    counted.add(torch.zeros(4, 2))
    assert counted.score().margin == 1
    assert counted.score().own_distance == float("inf")
