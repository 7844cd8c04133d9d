"""The images of a linear probe as batches of features: extracted once, or extracted from a new random crop in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mapet.data.order import StepBatches, step_batches
from mapet.data.source import subset
from mapet.data.views import AugmentedView, View
from mapet.evaluation.held_out import hold_out_rows
from mapet.evaluation.probes.representations import Describe, describe_all, described_in_all
from mapet.evaluation.subject import Subject


class ProbeImages(Protocol):
    """What a probe learns from and chooses on.

    Attributes:
        labels: (n,) int64 of the training images.
        held_out: (n,) bool, which of them settings are chosen on; None where nothing is to be chosen.
    """

    labels: Tensor
    held_out: Tensor | None

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Features (B, L, F), labels (B,) and which of them may be learned from while settings are chosen, (B,) bool."""
        ...

    def unaugmented(self) -> Tensor:
        """Features (n, L, F) of the training images, seen as test images are."""
        ...

    def held_out_part(self) -> tuple[Tensor, Tensor]:
        """Features (m, L, F) and labels (m,) of the held-out images, seen as test images are."""
        ...


class CachedImages:
    """Features that were extracted before.

    Args:
        features: (n, L, F).
        labels: (n,) int64.
        held_out_share: Of every class; 0 for none.
        seed: Of the draw.
    """

    def __init__(self, features: Tensor, labels: Tensor, held_out_share: float, seed: int) -> None:
        self.features, self.labels = features, labels
        self.held_out = hold_out_rows(labels, held_out_share, seed) if held_out_share else None

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """As in `ProbeImages`."""
        for chosen in order_of(len(self.labels), batch_size, seed, epochs):
            rows = torch.tensor(chosen, device=self.features.device)
            yield self.features[rows], self.labels[rows], None if self.held_out is None else ~self.held_out[rows]

    def unaugmented(self) -> Tensor:
        """As in `ProbeImages`."""
        return self.features

    def held_out_part(self) -> tuple[Tensor, Tensor]:
        """As in `ProbeImages`."""
        assert self.held_out is not None
        return self.features[self.held_out], self.labels[self.held_out]


class AugmentedImages:
    """Random resized crops and flips, new in every epoch.

    Args:
        subject: The backbone and its training images.
        describe: What is said about images.
        view: How images are seen without augmentation.
        held_out_share: Of every class; 0 for none.
        seed: Of the draw and of the crops.
    """

    def __init__(self, subject: Subject, describe: Describe, view: View, held_out_share: float, seed: int) -> None:
        assert subject.train.labels is not None
        self.labels = torch.from_numpy(subject.train.labels).to(subject.device)
        self.held_out = hold_out_rows(self.labels, held_out_share, seed) if held_out_share else None
        self._subject, self._describe, self._view = subject, describe, view

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """As in `ProbeImages`."""
        subject, view = self._subject, AugmentedView(self._subject.recipe.image_size)
        for loaded in subject.augmented(view, order_of(len(self.labels), batch_size, seed, epochs), seed):
            features, labels, indices = described_in_all(subject, subject.train, loaded, self._describe)
            if len(labels):  # else nothing of the batch could be read
                yield features, labels, None if self.held_out is None else ~self.held_out[indices]
        subject.share_records()

    def unaugmented(self) -> Tensor:
        """As in `ProbeImages`."""
        return describe_all(self._subject, self._subject.train, self._view, self._describe, "training")[0]

    def held_out_part(self) -> tuple[Tensor, Tensor]:
        """As in `ProbeImages`."""
        assert self.held_out is not None
        images = subset(self._subject.train, np.flatnonzero(self.held_out.cpu().numpy()))
        return describe_all(self._subject, images, self._view, self._describe, "held-out")


def order_of(images: int, batch_size: int, seed: int, epochs: int) -> StepBatches:
    """The rows of every step of some epochs; a batch holds all images where there are fewer than its size."""
    size = min(batch_size, images)
    return step_batches(images, size, seed, 0, epochs * (images // size))
