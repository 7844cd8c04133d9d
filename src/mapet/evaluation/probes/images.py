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
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.probes.representations import Describe, describe_all, described_in_all
from mapet.evaluation.validation_split import hold_out_rows


class ProbeImages(Protocol):
    """What a probe learns from and chooses on.

    Attributes:
        labels: (n,) int64 of the training images.
        validation_split: (n,) bool, which of them settings are chosen on; None where nothing is to be chosen.
    """

    labels: Tensor
    validation_split: Tensor | None

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Features (B, L, F), labels (B,) and which of them may be learned from while settings are chosen, (B,) bool."""
        ...

    def unaugmented(self) -> Tensor:
        """Features (n, L, F) of the training images, seen as test images are."""
        ...

    def validation_part(self) -> tuple[Tensor, Tensor]:
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
        self.validation_split = hold_out_rows(labels, held_out_share, seed) if held_out_share else None

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """As in `ProbeImages`."""
        for indices in order_of(len(self.labels), batch_size, seed, epochs):
            rows = torch.tensor(indices, device=self.features.device)
            yield self.features[rows], self.labels[rows], None if self.validation_split is None else ~self.validation_split[rows]

    def unaugmented(self) -> Tensor:
        """As in `ProbeImages`."""
        return self.features

    def validation_part(self) -> tuple[Tensor, Tensor]:
        """As in `ProbeImages`."""
        assert self.validation_split is not None
        return self.features[self.validation_split], self.labels[self.validation_split]


class AugmentedImages:
    """Random resized crops and flips, new in every epoch.

    Args:
        frozen: The backbone and its training images.
        describe: The function from images to features.
        view: How images are seen without augmentation.
        held_out_share: Of every class; 0 for none.
        seed: Of the draw and of the crops.
    """

    def __init__(self, frozen: FrozenBackbone, describe: Describe, view: View, held_out_share: float, seed: int) -> None:
        assert frozen.train.labels is not None
        self.labels = torch.from_numpy(frozen.train.labels).to(frozen.device)
        self.validation_split = hold_out_rows(self.labels, held_out_share, seed) if held_out_share else None
        self._frozen, self._describe, self._view = frozen, describe, view

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """As in `ProbeImages`."""
        frozen, view = self._frozen, AugmentedView(self._frozen.spec.image_size)
        for loaded in frozen.augmented(view, order_of(len(self.labels), batch_size, seed, epochs), seed):
            features, labels, indices = described_in_all(frozen, frozen.train, loaded, self._describe)
            if len(labels):  # else nothing of the batch could be read
                yield features, labels, None if self.validation_split is None else ~self.validation_split[indices]
        frozen.share_records()

    def unaugmented(self) -> Tensor:
        """As in `ProbeImages`."""
        return describe_all(self._frozen, self._frozen.train, self._view, self._describe, "training")[0]

    def validation_part(self) -> tuple[Tensor, Tensor]:
        """As in `ProbeImages`."""
        assert self.validation_split is not None
        images = subset(self._frozen.train, np.flatnonzero(self.validation_split.cpu().numpy()))
        return describe_all(self._frozen, images, self._view, self._describe, "held-out")


def order_of(images: int, batch_size: int, seed: int, epochs: int) -> StepBatches:
    """The rows of every step of some epochs; a batch holds all images where there are fewer than its size."""
    size = min(batch_size, images)
    return step_batches(images, size, seed, 0, epochs * (images // size))
