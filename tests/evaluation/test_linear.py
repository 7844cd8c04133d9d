from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mapet.evaluation.linear import LinearProbe
from mapet.evaluation.subject import FeatureSet

FAST = {"epochs": 30, "min_steps": 0, "batch_size": 32, "lr": 0.05}


def features_of(labels: Tensor, separable: bool, seed: int, scale: Tensor) -> FeatureSet:
    """Features that tell the class by their direction, or not at all, on very different scales."""
    noise = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    if separable:
        noise[:, :4] = 0.2 * noise[:, :4] + 3 * torch.nn.functional.one_hot(labels, 4)
    return FeatureSet(noise * scale, torch.empty(len(labels), 0), labels)


def subject_with(separable: bool, count: int = 200) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-3, 3, 8)
    train, test = (torch.randint(4, (count,), generator=generator) for _ in range(2))
    return SimpleNamespace(
        title="planted",
        device=torch.device("cpu"),
        num_classes=4,
        train_features=features_of(train, separable, 1, scale),
        test_features=features_of(test, separable, 2, scale),
    )


def test_separable_features_are_learned_whatever_their_scale() -> None:
    assert LinearProbe(**FAST).judge(subject_with(separable=True)).figures["top1"] == 1.0


def test_random_labels_are_not() -> None:
    accuracy = LinearProbe(**FAST).judge(subject_with(separable=False, count=1000)).figures["top1"]
    assert accuracy == pytest.approx(0.25, abs=0.06)


def test_the_same_seed_gives_the_same_figure() -> None:
    subject = subject_with(separable=False)
    settings = FAST | {"epochs": 2}
    assert LinearProbe(**settings).judge(subject).figures["top1"] == LinearProbe(**settings).judge(subject).figures["top1"]


def test_few_images_are_passed_over_more_often(monkeypatch) -> None:
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (seen.append(1), step(self)))
    LinearProbe(epochs=1, min_steps=17, batch_size=1024).judge(subject_with(separable=True)).figures["top1"]
    assert len(seen) == 17


def test_a_constant_feature_divides_nothing_by_zero() -> None:
    subject = subject_with(separable=True)
    for part in (subject.train_features, subject.test_features):
        part.mean[:, 7] = 5.0
    assert LinearProbe(**FAST).judge(subject).figures["top1"] == 1.0
