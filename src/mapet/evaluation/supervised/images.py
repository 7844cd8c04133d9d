"""Augmented training images: new views in every epoch, loaded by the same workers from the first epoch to the last."""

from __future__ import annotations

from collections.abc import Sequence

from mapet.data.background import BackgroundBatches, BatchMaker
from mapet.data.loader import LoadedBatch, Samples, StepBatches, bytes_of
from mapet.data.source import ImageSource
from mapet.data.views import View
from mapet.evaluation.subject import Subject
from mapet.runtime.seeding import derive_seed


class AugmentedImages(BatchMaker[LoadedBatch]):
    """Decodes and views whole batches: item (epoch, [i, j, ...]) is a `LoadedBatch`, a function of seed, epoch and sample keys.

    One loader serves all epochs, so that its workers are not started anew in each.
    """

    def __init__(self, source: ImageSource, view: View, seed: int) -> None:
        self._source, self._view, self._seed = source, view, seed

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> LoadedBatch:
        epoch, indices = item
        samples = Samples(self._source, indices)
        images = [self._view(image, derive_seed(self._seed, "view", epoch, key)) for image, key in samples]
        return samples.batch(images, self._view.size)

    def pixels(self, item: tuple[int, Sequence[int]]) -> int:
        """Bytes of a batch."""
        return len(item[1]) * bytes_of(self._view.size)


def augmented_batches(subject: Subject, view: View, steps: StepBatches, seed: int) -> BackgroundBatches[LoadedBatch]:
    """The subject's training images in batches.

    Args:
        subject: For its training images, its workers and its device.
        view: A function of the image and a seed.
        steps: Which images.
        seed: Of the views.
    """
    images = AugmentedImages(subject.train, view, seed)
    return BackgroundBatches(images, steps.with_epochs(), subject.workers, pin_memory=subject.device.type == "cuda")
