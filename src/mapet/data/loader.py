"""From a source to batches: in a fixed order, decoded by workers, with unreadable images counted and named.

The order is a pure function of the step and a random view of (seed, epoch, sample key): resuming needs no state, and the number of
workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from mapet.data.background import BackgroundBatches, BatchMaker
from mapet.data.decode import decode_image
from mapet.data.source import ImageSource, sample_key
from mapet.data.views import View
from mapet.errors import DataError, SettingsError, UnreadableImageError
from mapet.runtime.seeding import derive_seed, seeded_generator

_NAMED = 5


@dataclass(frozen=True)
class UnreadableImage:
    """An image that was skipped.

    Args:
        index: Position in the source.
        key: Its sample key; "" where not even its bytes could be read.
        description: What to look for: a path, or a row.
        reason: Why, in words.
    """

    index: int
    key: str
    description: str
    reason: str


@dataclass(frozen=True)
class LoadedBatch:
    """The readable samples of one batch, in the order asked for; B may be smaller than asked, or 0.

    Args:
        images: (B, 3, H, W) uint8; where an image is seen in V crops, (B * V, 3, H, W), those of an image behind each other.
        keys: B sample keys.
        labels: (B,) int64, or None where the source has none.
        indices: (B,) int64 positions in the source.
        unreadable: What was skipped.
        crops: The numbers of the V crops.
        tokenizer_images: The same regions as `images` as the tokenizer sees them, (B * V, 3, T, T) uint8, where they are wanted.
    """

    images: Tensor
    keys: list[str]
    labels: Tensor | None
    indices: Tensor
    unreadable: list[UnreadableImage]
    crops: tuple[int, ...] = (0,)
    tokenizer_images: Tensor | None = None

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory, from where a CUDA device copies in the background; torch's DataLoader calls it."""
        optional = {"labels": self.labels, "tokenizer_images": self.tokenizer_images}
        pinned = {name: None if tensor is None else tensor.pin_memory() for name, tensor in optional.items()}
        return replace(self, images=self.images.pin_memory(), **pinned)

    def share_memory(self) -> LoadedBatch:
        """The same in shared memory; raises RuntimeError where that is full."""
        for tensor in (self.images, self.labels, self.indices, self.tokenizer_images):
            if tensor is not None and tensor.numel():
                tensor.share_memory_()
        return self


class UnreadableImages:
    """Counts and names what was skipped; every image once, however often it comes by.

    Args:
        limit: How many may be skipped: the user's --max-unreadable.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.images: list[UnreadableImage] = []
        self._seen: set[str] = set()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """The paths or rows of the skipped images."""
        return [image.description for image in self.images]

    def among(self, source: ImageSource) -> int:
        """How many images of `source` are among them; one that `source` names twice is two."""
        names = {*self.names}
        return sum(source.describe(index) in names for index in range(len(source))) if names else 0

    def record(self, images: Iterable[UnreadableImage]) -> None:
        """Adds `images`; raises DataError once there are more than `limit`."""
        for image in images:
            if image.description not in self._seen:
                self._seen.add(image.description)
                self.images.append(image)
        if len(self) > self.limit:
            raise DataError(
                f"{self._count()} cannot be read, {self.limit} may be skipped:\n{self._listing()}\n"
                f"Repair or remove them, or skip up to N of them with --max-unreadable N."
            )

    def summary(self) -> str:
        """For the end of a run: how many were skipped and which; "" if none."""
        return f"{self._count()} skipped as unreadable:\n{self._listing()}" if self.images else ""

    def _count(self) -> str:
        return f"{len(self)} image" + ("s" if len(self) > 1 else "")

    def _listing(self) -> str:
        lines = [f"  {image.description}: {image.reason}" for image in self.images[:_NAMED]]
        more = len(self) - _NAMED
        return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)


class StepBatches:
    """The sample indices of every training step; see `step_batches`."""

    def __init__(
        self, length: int, batch_size: int, seed: int, first_step: int, last_step: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise SettingsError(f"The batch size is {batch_size}; it must be a positive multiple of the {world} processes.")
        if length < batch_size:
            raise DataError(f"There are {length} images, fewer than one batch of {batch_size}. Add images or lower the batch size.")
        self.steps_per_epoch = length // batch_size
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._steps = range(first_step, last_step)
        share = batch_size // world
        self._share = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        return (indices for _, indices in self.with_epochs())

    def with_epochs(self) -> Iterator[tuple[int, list[int]]]:
        """The epoch and the sample indices of every step."""
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in self._steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self._length, generator=seeded_generator(self._seed, "order", epoch))
            start = step % self.steps_per_epoch * self._batch_size
            yield epoch, order[start : start + self._batch_size][self._share].tolist()


def step_batches(
    length: int, batch_size: int, seed: int, first_step: int, last_step: int, rank: int = 0, world: int = 1
) -> StepBatches:
    """The sample indices of the steps first_step to last_step - 1, for one rank.

    Every epoch is a fresh permutation drawn from (seed, "order", epoch), its remainder dropped. The global batch of a step does not
    depend on `world`; each rank gets its slice.

    Args:
        length: Number of samples.
        batch_size: Of all ranks together.
        seed: Of the run.
        first_step: First step, from 0.
        last_step: One past the last step.
        rank: This process.
        world: Number of processes.

    Raises:
        SettingsError: batch_size is not a multiple of world.
        DataError: There are fewer samples than one batch needs.
    """
    return StepBatches(length, batch_size, seed, first_step, last_step, rank, world)


def sequential_batches(length: int, batch_size: int) -> list[list[int]]:
    """Every index once, in order; the last batch may be smaller."""
    return [list(range(start, min(start + batch_size, length))) for start in range(0, length, batch_size)]


class Samples:
    """Reads and decodes the images of a batch, once and one after the other; `batch` then tells what could be read.

    Args:
        source: Where the images come from.
        indices: Their positions.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices
        self._good: list[int] = []
        self._keys: list[str] = []
        self._unreadable: list[UnreadableImage] = []

    def __iter__(self) -> Iterator[tuple[Image.Image, str]]:
        """Yields every readable image, in mode RGB, and its key."""
        for index in self._indices:
            key = ""
            try:
                content = self._source.read(index)
                key = sample_key(content)
                image = decode_image(content)
            except UnreadableImageError as error:
                self._unreadable.append(UnreadableImage(index, key, self._source.describe(index), str(error)))
                continue
            self._keys.append(key)
            self._good.append(index)
            yield image, key

    def batch(self, images: Sequence[Tensor], size: int) -> LoadedBatch:
        """The batch of what was made of them, uint8 (3, size, size) each."""
        labels = None if self._source.labels is None else torch.from_numpy(self._source.labels[self._good])
        indices = torch.tensor(self._good, dtype=torch.int64)
        return LoadedBatch(stack(images, size), self._keys, labels, indices, self._unreadable)


def stack(images: Sequence[Tensor], size: int) -> Tensor:
    """(B, 3, size, size) uint8; B may be 0."""
    return torch.stack([*images]) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)


class ViewedImages(BatchMaker[LoadedBatch]):
    """Decodes and views whole batches: item [i, j, ...] is a `LoadedBatch`."""

    def __init__(self, source: ImageSource, view: View, seed: int = 0, epoch: int = 0) -> None:
        self._source, self._view, self._seed, self._epoch = source, view, seed, epoch

    def __getitem__(self, indices: Sequence[int]) -> LoadedBatch:
        samples = Samples(self._source, indices)
        images = [self._view(image, derive_seed(self._seed, "view", self._epoch, key)) for image, key in samples]
        return samples.batch(images, self._view.size)

    def pixels(self, indices: Sequence[int]) -> int:
        """Bytes of a batch."""
        return len(indices) * bytes_of(self._view.size)


def bytes_of(size: int) -> int:
    """Bytes of the pixels of one view."""
    return 3 * size**2


def make_loader(
    source: ImageSource,
    view: View,
    batches: Iterable[list[int]],
    workers: int,
    seed: int = 0,
    epoch: int = 0,
    pin_memory: bool = False,
) -> BackgroundBatches[LoadedBatch]:
    """Loads `batches` of `source` in order, in the background if there are workers.

    Args:
        source: The images.
        view: What to make of each.
        batches: Lists of indices, for example `step_batches(...)`; read lazily.
        workers: Number of processes; 0 loads in this one.
        seed: Of the run.
        epoch: Which draw of a random view; the same (seed, epoch, sample) gives the same pixels.
        pin_memory: Where the batches go to a CUDA device: copies need not be waited for then.
    """
    return BackgroundBatches(ViewedImages(source, view, seed, epoch), batches, workers, pin_memory)
