"""Batches of augmented images and masks, in a fixed order, made by workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch

from mapet.data.background import BackgroundBatches, BatchMaker
from mapet.data.decode import decode_image
from mapet.data.loader import LoadedBatch, StepBatches, UnreadableImage, bytes_of, stack
from mapet.data.source import sample_key
from mapet.errors import UnreadableImageError
from mapet.evaluation.segmentation.augment import Augmentation
from mapet.evaluation.segmentation.data import MaskedImages
from mapet.runtime.seeding import derive_seed


class AugmentedPairs(BatchMaker[LoadedBatch]):
    """Item (epoch, [i, j, ...]) is a `LoadedBatch` of crops, its labels (B, crop, crop) int16; negative where there is no class.

    What is drawn is a function of (seed, epoch, sample key).
    """

    def __init__(self, source: MaskedImages, augment: Augmentation, seed: int) -> None:
        self._source, self._augment, self._seed = source, augment, seed

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> LoadedBatch:
        epoch, indices = item
        images, masks, keys, good, unreadable = [], [], [], [], []
        for index in indices:
            key = ""
            try:
                content = self._source.read(index)
                key = sample_key(content)
                image = decode_image(content)
            except UnreadableImageError as error:
                unreadable.append(UnreadableImage(index, key, self._source.describe(index), str(error)))
                continue
            pixels, mask = self._augment(image, self._source.read_mask(index), derive_seed(self._seed, "augment", epoch, key))
            images.append(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1))
            masks.append(torch.from_numpy(np.ascontiguousarray(mask)))
            keys.append(key)
            good.append(index)
        side = self._augment.crop
        labels = torch.stack(masks) if masks else torch.empty(0, side, side, dtype=torch.int16)
        return LoadedBatch(stack(images, side), keys, labels, torch.tensor(good, dtype=torch.int64), unreadable)

    def pixels(self, item: tuple[int, Sequence[int]]) -> int:
        """Bytes of a batch; two a pixel of a mask."""
        side = self._augment.crop
        return len(item[1]) * (bytes_of(side) + 2 * side**2)


def load_pairs(
    source: MaskedImages, augment: Augmentation, batches: StepBatches, seed: int, workers: int, pin_memory: bool
) -> Iterable[LoadedBatch]:
    """The crops of every step in `batches`; see `AugmentedPairs`."""
    return BackgroundBatches(AugmentedPairs(source, augment, seed), batches.with_epochs(), workers, pin_memory)


def labels_of(batch: LoadedBatch) -> torch.Tensor:
    """(B, H, W) int16 classes of a batch of `load_pairs`."""
    return cast(torch.Tensor, batch.labels)
