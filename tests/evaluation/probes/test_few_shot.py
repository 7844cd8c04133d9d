from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import pytest
import torch

from mapet.evaluation.presets import setting_names
from mapet.evaluation.probes.few_shot import PENALTIES, FewShot, few_rows
from mapet.evaluation.probes.logistic import standardised
from mapet.evaluation.probes.logistic_regression import fit_logistic
from tests.evaluation.planted import CLASSES, planted_frozen


@pytest.fixture
def labels() -> torch.Tensor:
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    return torch.tensor([0] * 600 + [1] * 300 + [2] * 98 + [3] * 2)[order]


@pytest.mark.parametrize(("share", "counts"), [(0.1, [25, 25, 25, 2]), (0.01, [2, 2, 2, 2]), (1e-4, [1, 1, 1, 1])])
def test_every_class_gives_as_many_images(labels: torch.Tensor, share: float, counts: list[int]) -> None:
    rows = few_rows(labels, share, seed=0, draw=0)
    assert torch.bincount(labels[rows]).tolist() == counts
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_draws_differ_and_come_back(labels: torch.Tensor) -> None:
    first, again, second = (few_rows(labels, 0.1, seed=0, draw=draw).tolist() for draw in (0, 0, 1))
    assert first == again != second
    assert few_rows(labels, 0.1, seed=1, draw=0).tolist() != first
    shared = set(first) & set(few_rows(labels, 0.01, seed=0, draw=0).tolist())
    assert len(shared) == 8, "the smaller draw is part of the larger one"


def test_the_figure_is_the_mean_over_draws_of_logistic_regressions() -> None:
    frozen = planted_frozen(noise=0.7, train=400)
    found = FewShot(share=0.05, draws=3, l2=0.03).evaluate(frozen)
    tops = []
    for draw in range(3):
        train, test = frozen.train_features, frozen.test_features
        rows = few_rows(train.labels, 0.05, 0, draw)
        features, others = standardised(train.mean, test.mean)
        answers = fit_logistic(features[rows], train.labels[rows], CLASSES, 0.03).scores(others).argmax(1)
        tops.append(float((answers == test.labels).double().mean()))
    assert len(set(tops)) > 1
    assert [entry["top1"] for entry in found.details["draws"]] == tops
    assert found.values["top1"] == pytest.approx(statistics.mean(tops))
    assert found.details["deviation"]["top1"] == pytest.approx(statistics.stdev(tops))
    assert [entry["images"] for entry in found.details["draws"]] == [20] * 3


def test_one_image_a_class_needs_no_held_out_part() -> None:
    found = FewShot(share=1e-4, draws=2).evaluate(planted_frozen(noise=0.1))
    assert [entry["l2"] for entry in found.details["draws"]] == [0.1, 0.1]
    assert [entry["images"] for entry in found.details["draws"]] == [CLASSES] * 2
    assert found.values["top1"] > 0.9


def test_penalties_are_chosen_within_the_few_images() -> None:
    frozen = planted_frozen(noise=0.7, train=400)
    found = FewShot(share=0.1, draws=2).evaluate(frozen)
    test = frozen.test_features
    frozen.test_features = dataclasses.replace(test, labels=(test.labels + 1) % CLASSES)
    again = FewShot(share=0.1, draws=2).evaluate(frozen)
    for entry, other in zip(found.details["draws"], again.details["draws"], strict=True):
        assert entry["l2"] == other["l2"] in PENALTIES
        assert entry["held_out_top1"] == other["held_out_top1"]
        assert entry["top1"] != other["top1"]


def test_one_draw_has_no_deviation() -> None:
    assert FewShot(draws=1).evaluate(planted_frozen()).details["deviation"] == {}


@pytest.mark.parametrize("name", setting_names(FewShot))
def test_the_hash_changes_with_every_setting(name: str) -> None:
    changes: dict[str, Any] = {"pool": "cls", "share": 0.2, "draws": 3, "l2": 0.5, "held_out_share": 0.1, "seed": 1}
    assert dataclasses.replace(FewShot(), **{name: changes[name]}).hash != FewShot().hash
