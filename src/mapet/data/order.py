"""Which images make up a batch, and which views of them: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from mapet.errors import DataError, SettingsError
from mapet.runtime.rank import Processes
from mapet.runtime.seeding import seeded_generator


@dataclass(frozen=True)
class BatchItem:
    """What one batch shows.

    Args:
        indices: Positions of the images in the source.
        views: Numbers of the views that are shown of each image, such as the epoch; views without chance ignore them.
    """

    indices: list[int]
    views: tuple[int, ...] = (0,)


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
        return (item.indices for item in self.items())

    def items(self, view: Callable[[int], int] = lambda epoch: epoch) -> Iterator[BatchItem]:
        """What a loader takes: the sample indices of every step, in the view that its epoch shows."""
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in self._steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self._length, generator=seeded_generator(self._seed, "order", epoch))
            start = step % self.steps_per_epoch * self._batch_size
            yield BatchItem(order[start : start + self._batch_size][self._share].tolist(), (view(epoch),))


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


def shared(items: Iterable[BatchItem], processes: Processes) -> Iterator[BatchItem]:
    """Of every batch, the images of this process; their numbers differ by one at most where the batch does not divide."""
    return (replace(item, indices=processes.share(item.indices)) for item in items)


def sequential_batches(length: int, batch_size: int) -> list[BatchItem]:
    """Every index once, in order; the last batch may be smaller."""
    return [BatchItem([*range(start, min(start + batch_size, length))]) for start in range(0, length, batch_size)]
