"""Outcomes of single images: how two runs are paired, and figures that are no means over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mapet.compare.results import Measured, compared
from mapet.compare.statistics import paired_difference
from mapet.evaluation.outcomes import Outcomes


def measured(top1: list[float], labels: list[int] | None = None, order: list[int] | None = None) -> Measured:
    """Outcomes of images a, b, c, ... in some order."""
    rows = order or [*range(len(top1))]
    keys = np.array([f"{row:040x}".encode() for row in rows])
    known = None if labels is None else torch.tensor([labels[row] for row in rows])
    outcomes = Outcomes({"top1": torch.tensor([top1[row] for row in rows], dtype=torch.float64)}, known)
    return Measured(None, 0.0, keys, outcomes)  # type: ignore[arg-type]


def test_images_are_paired_by_their_keys() -> None:
    """The same outcomes in another order differ in no image, which makes the interval as narrow as it can be."""
    right = [1.0, 1.0, 0.0, 0.0] * 10  # another row when it is read backwards
    shuffled = [*reversed(range(len(right)))]
    found = compared([measured(right)], [measured(right, order=shuffled)], "top1")
    assert found == paired_difference(np.zeros((1, len(right))))
    better = compared([measured(right)], [measured([1.0] * len(right), order=shuffled)], "top1")
    assert better is not None
    assert better.mean == pytest.approx(0.5)


def test_the_mean_per_class_weighs_classes_alike() -> None:
    labels = [0, 0, 0, 1]
    before, after = measured([1, 0, 0, 0], labels), measured([1, 0, 0, 1], labels)
    found = compared([before], [after], "mean_per_class")
    assert found is not None
    assert found.mean == pytest.approx(0.5)


def segmented(right: np.ndarray) -> Measured:
    """Outcomes of images (n,) of two classes with 100 pixels each, of which a share is right."""
    rows = torch.from_numpy((100 * right).round()).long()
    pixels = torch.stack([torch.stack([each, each]) for each in rows])  # (n, 2) that are right
    whole = torch.full_like(pixels, 100)
    predicted = torch.stack([100 + 0 * pixels[:, 0], 100 + 0 * pixels[:, 1]], dim=1)
    outcomes = Outcomes({}, None, torch.stack([pixels, whole, predicted], dim=1))
    return Measured(None, 0.0, np.array([f"{row:040x}".encode() for row in range(len(right))]), outcomes)  # type: ignore[arg-type]


def test_figures_that_are_no_means_over_images() -> None:
    """mIoU of 60 % and of 80 % right pixels: 60 / 140 and 80 / 120."""
    generator = np.random.default_rng(0)
    worse, better = ([segmented(np.clip(generator.normal(share, 0.03, 30), 0, 1)) for _ in range(3)] for share in (0.6, 0.8))
    found = compared(worse, better, "miou")
    assert found is not None
    assert found.mean == pytest.approx(80 / 120 - 60 / 140, abs=0.02)
    assert 0.15 < found.low < found.mean < found.high < 0.35
    assert found.seeds == 3
