from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mapet.evaluation.probes import knn as module
from mapet.evaluation.probes.knn import KNN, REPORTED, count_votes, nearest
from tests.evaluation.planted import planted_frozen

CLASSES = 4


@pytest.fixture(scope="module")
def features() -> tuple[Tensor, Tensor, Tensor]:
    """Features with some structure: 60 to learn from, 25 to judge."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 6, generator=generator)
    labels = torch.randint(CLASSES, (85,), generator=generator)
    points = centres[labels] + 1.5 * torch.randn(85, 6, generator=generator)
    points *= torch.rand(85, 1, generator=generator) * 10 + 0.1
    return points[:60], labels[:60], points[60:]


def naive_votes(train: Tensor, labels: Tensor, query: Tensor, neighbours: int, temperature: float) -> list[float]:
    cosines = [
        (float(row @ query) / float(row.norm() * query.norm()), int(label)) for row, label in zip(train, labels, strict=True)
    ]
    votes = [0.0] * CLASSES
    for cosine, label in sorted(cosines, reverse=True)[:neighbours]:
        votes[label] += math.exp(cosine / temperature)
    return votes


@pytest.mark.parametrize("neighbours", [1, 7, 20, 1000])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_those_of_a_loop(features, neighbours: int, temperature: float, monkeypatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 10)
    train, labels, queries = features
    votes = count_votes(*nearest(train, labels, queries, neighbours), CLASSES, temperature).double()
    expected = torch.tensor([naive_votes(train, labels, query, neighbours, temperature) for query in queries], dtype=torch.float64)
    torch.testing.assert_close(votes / votes.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_votes_are_those_of_scikit_learn(features) -> None:
    train, labels, queries = features
    reference = KNeighborsClassifier(7, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine")
    expected = reference.fit(train.numpy(), labels.numpy()).predict_proba(queries.numpy())
    votes = count_votes(*nearest(train, labels, queries, 7), CLASSES, 0.07)
    np.testing.assert_allclose((votes / votes.sum(1, keepdim=True)).numpy(), expected, atol=1e-5)
    assert (votes.argmax(1).numpy() == expected.argmax(1)).all()


def test_a_low_temperature_overflows_nothing(features) -> None:
    votes = count_votes(*nearest(*features, 20), CLASSES, 1e-3)
    assert torch.isfinite(votes).all()
    assert (votes.sum(1) > 0).all()


def test_other_numbers_of_neighbours_are_in_the_details() -> None:
    frozen = planted_frozen(noise=1.0)
    found = KNN(neighbours=7).evaluate(frozen)
    tops = found.details["top1_by_neighbours"]
    assert list(tops) == [str(count) for count in sorted({*REPORTED, 7}) if count <= 120]
    assert tops["7"] == found.values["top1"]
    for count, top in tops.items():
        assert KNN(neighbours=int(count)).evaluate(frozen).values["top1"] == top
    assert len(set(tops.values())) > 1


def test_more_neighbours_than_images_are_all_images() -> None:
    frozen = planted_frozen(train=30)
    assert KNN(neighbours=1000).evaluate(frozen).values == KNN(neighbours=30).evaluate(frozen).values
