from __future__ import annotations

import torch

from mapet.tokenizers.clustering import lloyd
from mapet.tokenizers.clustering import points as points_module
from mapet.tokenizers.clustering.points import TensorPoints
from tests.tokenizers.clustering.test_kmeans import seeded


def test_the_farthest_points_are_the_same_whatever_the_blocks(monkeypatch):
    points, centroids = torch.rand(400, 3, generator=seeded()), torch.rand(5, 3, generator=seeded(1))
    points[[50, 300]] = points[123].clone()  # equally far: the first ones count
    data = lloyd.Data(TensorPoints(points), torch.device("cpu"), 400, 0, sharded=False)
    whole = lloyd.farthest(data, centroids, 30)
    monkeypatch.setitem(points_module.BLOCK_VALUES, "cpu", 3 * 32)
    for found, expected in zip(lloyd.farthest(data, centroids, 30), whole, strict=True):
        assert torch.equal(found, expected)
    distances = torch.cdist(points.double(), centroids.double()).square().amin(1)
    torch.testing.assert_close((whole[1] - centroids[whole[0]]).double().square().sum(1), distances.topk(30).values)
    assert lloyd.farthest(data, points[:200].clone(), 400)[0].shape == (199,)


def test_an_empty_cluster_takes_the_farthest_point_from_its_cluster():
    points = torch.tensor([[0.0], [2.0], [4.0], [30.0]])
    data = lloyd.Data(TensorPoints(points), torch.device("cpu"), 4, 0, sharded=False)
    centroids = torch.tensor([[1.0], [-500.0], [500.0]])
    totals = lloyd.one_pass(data, centroids)
    assert totals.counts.tolist() == [4, 0, 0]
    assert totals.sums.tolist() == [[36.0], [0.0], [0.0]]
    assert lloyd.moved(data, centroids, totals).tolist() == [[1.0], [30.0], [4.0]]


def test_sums_by_sorting_are_the_sums():
    points, ids = torch.rand(1000, 6, generator=seeded()), torch.randint(0, 20, (1000,), generator=seeded()) * 2
    expected = torch.zeros(40, 6).index_add_(0, ids, points)
    torch.testing.assert_close(lloyd.summed_by_id(ids, points, 40), expected)
