"""The linear probe: one linear layer on frozen features.

Two presets, both with the paper's optimiser (50 epochs, batch 1024, AdamW, lr 4e-3 with a cosine to 0, weight decay 1e-4):

    cached   features are extracted once, without augmentation, and standardised by the training set's mean and deviation; minutes
             become seconds, and backbones whose features differ in scale are treated alike
    paper    random resized crops and flips in every epoch, centre crop at the end, features as they are; MaPeT, section 4
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.data.loader import StepBatches, make_loader, step_batches
from mapet.data.views import AugmentedView, EvaluationView
from mapet.errors import SettingsError, nearest
from mapet.evaluation.protocol import Protocol
from mapet.evaluation.subject import FeatureSet, Subject
from mapet.runtime.progress import progress

PRESETS = ("cached", "paper")


@dataclass(frozen=True)
class LinearProbe(Protocol):
    """Settings of both presets.

    Args:
        pool: "mean", "cls" or "both".
        preset: "cached" or "paper".
        epochs: Passes over the training images.
        min_steps: The cached preset takes at least so many steps, in more epochs where there are few images.
        batch_size: Images a step; all of them where there are fewer.
        lr: At the start; a cosine takes it to 0.
        weight_decay: Of AdamW, on the weight and not on the bias.
        seed: Of order and augmentation; the layer starts at 0.
    """

    name: ClassVar[str] = "linear"

    preset: str = "cached"
    epochs: int = 50
    min_steps: int = 1000
    batch_size: int = 1024
    lr: float = 4e-3
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise SettingsError(f"There is no preset '{self.preset}' of the linear probe. {nearest(self.preset, PRESETS)}")

    def accuracy(self, subject: Subject) -> float:
        """Share of test images that a trained probe classifies rightly, 0 to 1."""
        task = _cached_task(self, subject) if self.preset == "cached" else _paper_task(self, subject)
        probe = train_probe(self, task, subject)
        return float((probe(task.test).argmax(dim=1) == task.test_labels).double().mean())


@dataclass(frozen=True)
class _Task:
    """Batches of features (B, D) and labels (B,) for `steps` steps; test features (m, D) and labels (m,)."""

    steps: int
    batches: Iterable[tuple[Tensor, Tensor]]
    test: Tensor
    test_labels: Tensor


def _cached_task(protocol: LinearProbe, subject: Subject) -> _Task:
    train, test = subject.train_features, subject.test_features
    features = train.pooled(protocol.pool)
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    features = (features - mean) / std
    per_epoch = _batches(len(features), protocol, 0, 0).steps_per_epoch
    order = _batches(len(features), protocol, 0, max(protocol.epochs * per_epoch, protocol.min_steps))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in order:
            yield features[chosen], train.labels[chosen]

    return _Task(len(order), batches(), (test.pooled(protocol.pool) - mean) / std, test.labels)


def _paper_task(protocol: LinearProbe, subject: Subject) -> _Task:
    test = subject.extract(subject.test, EvaluationView(subject.recipe.image_size), "test")
    per_epoch = _batches(len(subject.train), protocol, 0, 0).steps_per_epoch

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        view = AugmentedView(subject.recipe.image_size)
        for epoch in range(protocol.epochs):
            steps = _batches(len(subject.train), protocol, epoch * per_epoch, (epoch + 1) * per_epoch)
            for loaded in make_loader(subject.train, view, steps, subject.workers, protocol.seed, epoch):
                subject.unreadable.record(loaded.unreadable)
                mean, cls = subject.features(loaded.images)
                labels = cast(Tensor, loaded.labels).to(subject.device)
                yield FeatureSet(mean, cls, labels).pooled(protocol.pool).clone(), labels

    return _Task(protocol.epochs * per_epoch, batches(), test.pooled(protocol.pool), test.labels)


def _batches(length: int, protocol: LinearProbe, first: int, last: int) -> StepBatches:
    return step_batches(length, min(protocol.batch_size, length), protocol.seed, first, last)


def train_probe(protocol: LinearProbe, task: _Task, subject: Subject) -> nn.Linear:
    """A linear layer trained with AdamW and a cosine to 0 over all steps."""
    with torch.device(subject.device):
        probe = nn.Linear(task.test.shape[1], subject.num_classes)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    groups = [{"params": [probe.weight]}, {"params": [probe.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=protocol.lr, weight_decay=protocol.weight_decay)
    with progress(f"Linear probe, {subject.title}", task.steps) as bar:
        for step, (features, labels) in enumerate(task.batches):
            for group in optimizer.param_groups:
                group["lr"] = protocol.lr * 0.5 * (1 + math.cos(math.pi * step / task.steps))
            optimizer.zero_grad()
            cross_entropy(probe(features), labels).backward()
            optimizer.step()
            bar.advance()
    return probe.requires_grad_(False)
