"""Accuracies against the definition, image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mapet.errors import CheckpointError, DataError
from mapet.evaluation.outcomes import Outcomes, classified, load_outcomes, save_outcomes


def test_accuracies_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (60,), generator=generator)  # classes 6 and 7 do not occur, the others unequally often
    labels[labels == 5] = 0
    scores = torch.randn(60, 8, generator=generator)
    scores[torch.arange(60), labels] += 1.0
    ranked = [sorted(range(8), key=lambda number, row=row: -row[number]) for row in scores.tolist()]
    right = np.array([ranks[0] == label for ranks, label in zip(ranked, labels.tolist(), strict=True)])
    found = classified(scores, labels).metrics()
    assert found["top1"] == pytest.approx(right.mean())
    assert found["top5"] == pytest.approx(
        np.mean([label in ranks[:5] for ranks, label in zip(ranked, labels.tolist(), strict=True)])
    )
    assert found["mean_per_class"] == pytest.approx(np.mean([right[labels.numpy() == number].mean() for number in range(5)]))
    assert len({round(value, 6) for value in found.values()}) == 3


def test_of_fewer_than_five_classes_all_are_among_the_likeliest() -> None:
    assert classified(torch.tensor([[0.2, 0.1, 0.0]]), torch.tensor([2])).metrics() == {
        "top1": 0.0,
        "top5": 1.0,
        "mean_per_class": 0.0,
    }


def test_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="nothing can be evaluated"):
        classified(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


KEYS = np.array([f"{n:032x}" for n in range(4)], "S32")


def test_outcomes_come_back_as_they_were_written(tmp_path: Path) -> None:
    found = Outcomes(
        {"top1": torch.tensor([0.0, 1, 1, 0]).double(), "top5": torch.tensor([0.2, 1, 1, 0.4]).double()}, torch.arange(4)
    )
    save_outcomes(tmp_path / "x.safetensors", KEYS, {"pre-trained": found})
    keys, outcomes = load_outcomes(tmp_path / "x.safetensors")
    assert (keys == KEYS).all()
    assert outcomes.metrics() == pytest.approx(found.metrics())
    assert torch.equal(outcomes.values["top1"], found.values["top1"])


@pytest.mark.parametrize(
    "change",
    [
        {"keys": None},
        {"keys": torch.zeros(4, 3, dtype=torch.uint8)},
        {"labels": torch.arange(3)},
        {"labels": torch.rand(4)},
        {"pre-trained.top1": torch.zeros(3)},
        {"pre-trained.top1": torch.tensor([0.0, 1, 7, 0])},
        {"pre-trained.top1": torch.tensor([0.0, 1, float("nan"), 0])},
        {"pre-trained.pixels": torch.zeros(4, 2, 2, dtype=torch.int64)},
    ],
    ids=lambda change: f"{next(iter(change))}-{getattr(next(iter(change.values())), 'shape', 'missing')}",
)
def test_f22_outcomes_that_no_evaluation_writes_are_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "x.safetensors"
    save_outcomes(path, KEYS, {"pre-trained": Outcomes({"top1": torch.ones(4).double()}, torch.arange(4))})
    tensors = load_file(path) | change
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match="no evaluation writes"):
        load_outcomes(path)
