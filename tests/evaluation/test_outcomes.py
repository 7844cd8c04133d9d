"""Accuracies against the definition, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mapet.errors import DataError
from mapet.evaluation.outcomes import classified


def test_accuracies_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (60,), generator=generator)  # classes 6 and 7 do not occur, the others unequally often
    labels[labels == 5] = 0
    scores = torch.randn(60, 8, generator=generator)
    scores[torch.arange(60), labels] += 1.0
    ranked = [sorted(range(8), key=lambda number, row=row: -row[number]) for row in scores.tolist()]
    right = np.array([ranks[0] == label for ranks, label in zip(ranked, labels.tolist(), strict=True)])
    found = classified(scores, labels).figures()
    assert found["top1"] == pytest.approx(right.mean())
    assert found["top5"] == pytest.approx(
        np.mean([label in ranks[:5] for ranks, label in zip(ranked, labels.tolist(), strict=True)])
    )
    assert found["mean_per_class"] == pytest.approx(np.mean([right[labels.numpy() == number].mean() for number in range(5)]))
    assert len({round(value, 6) for value in found.values()}) == 3


def test_of_fewer_than_five_classes_all_are_among_the_likeliest() -> None:
    assert classified(torch.tensor([[0.2, 0.1, 0.0]]), torch.tensor([2])).figures() == {
        "top1": 0.0,
        "top5": 1.0,
        "mean_per_class": 0.0,
    }


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to judge by"):
        classified(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
