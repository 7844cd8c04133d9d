"""Batches made by other processes while this one computes, and what can go wrong with those processes.

They hand tensors over in shared memory, of which a container has little (Docker: 64 MB). Whatever happens to a process, the wait
for its batch ends: in the batch, or in a `MapetError`.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import DataLoader

from mapet.data.batch import LoadedBatch
from mapet.data.order import BatchItem
from mapet.errors import FailedRunError, MapetError, SettingsError
from mapet.runtime.seeding import seeded_generator

SHARED_MEMORY = Path("/dev/shm")  # where the system has it
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_GRACE_SECONDS = 30
_BATCHES_AHEAD = 2  # of every process
_WAY_OUT = (
    "Give it more (in Docker: docker run --shm-size=2g ...), or load images without other processes: --workers 0, in "
    "`mapet pretrain` --set mechanics.workers=0."
)


class BatchMaker(Protocol):
    """Makes the batch of an item: `mapet.data.loader.ImageBatches`."""

    def __getitem__(self, item: BatchItem) -> LoadedBatch:
        """The batch; images are bytes, as they then cross over to another process in a quarter of the memory."""
        ...

    def bytes_of(self, item: BatchItem) -> int:
        """How many bytes its pixels take, those of masks included."""
        ...


@dataclass(frozen=True)
class BackgroundBatches:
    """The batch of every item, in order, made by worker processes if there are any.

    Args:
        maker: Makes them.
        items: Of the batches; read lazily.
        workers: Number of processes; 0 makes them in this one.
        pin_memory: Whether they are put into page-locked memory.
    """

    maker: BatchMaker
    items: Iterable[BatchItem]
    workers: int
    pin_memory: bool

    def __iter__(self) -> Iterator[LoadedBatch]:
        """Yields the batches.

        Raises:
            SettingsError: There is too little shared memory.
            FailedRunError: A worker process ended.
            MapetError: Whatever the maker raised.
        """
        return self._here() if self.workers == 0 else self._elsewhere()

    def _here(self) -> Generator[LoadedBatch]:
        yield from self._loader(self.maker, self.items)

    def _elsewhere(self) -> Generator[LoadedBatch]:
        items = iter(self.items)
        first = [*islice(items, _BATCHES_AHEAD * self.workers + 1)]
        _check_shared_memory(sum(map(self.maker.bytes_of, first)), self.workers)
        with _signals_wait(), _left_alone(signal.SIGCHLD):
            batches: Any = iter(self._loader(_Guarded(self.maker), chain(first, items)))
        try:
            for batch in batches:
                if isinstance(batch, MapetError):
                    raise batch
                yield batch
        except RuntimeError as error:
            raise _in_words(error, batches) from error
        finally:
            batches._shutdown_workers()  # now: an error on its way keeps `batches` alive

    def _loader(self, maker: Any, items: Iterable[BatchItem]) -> DataLoader[Any]:
        return DataLoader(
            maker,
            batch_size=None,
            sampler=items,
            num_workers=self.workers,
            prefetch_factor=_BATCHES_AHEAD if self.workers else None,
            pin_memory=self.pin_memory,
            worker_init_fn=_outlive_signals,
            generator=seeded_generator("loader"),  # else torch draws from the global generator
        )


class _Guarded:
    """Batches in shared memory, or the error in place of one: a batch that fails during the transfer never arrives."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker

    def __getitem__(self, item: BatchItem) -> LoadedBatch | MapetError:
        try:
            batch = self._maker[item]
        except MapetError as error:
            return error
        except MemoryError:
            return FailedRunError("A process that loads images has no memory left. Use fewer (--workers) or smaller batches.")
        try:
            return batch.share_memory()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return FailedRunError(f"A batch does not fit into shared memory ({reason}). {_WAY_OUT}")


def _check_shared_memory(needed: int, workers: int) -> None:
    """Refuses to begin where the batches on their way, of so many bytes, would not fit."""
    if not SHARED_MEMORY.is_dir():
        return
    state = os.statvfs(SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    if free < needed:
        raise SettingsError(
            f"{workers} processes that load images need {needed / 2**20:,.0f} MB of shared memory for their batches, and "
            f"{SHARED_MEMORY} has {free / 2**20:,.0f} MB free. {_WAY_OUT} Smaller batches need less."
        )


def _in_words(error: RuntimeError, batches: Any) -> Exception:
    """What happened to the processes; the error itself where it is another."""
    ended = [worker.exitcode for worker in batches._workers if worker.exitcode not in (None, 0)]
    if not str(error).startswith("DataLoader worker") or not ended:
        return error
    number = -ended[0]
    name = signal.Signals(number).name if number in {*signal.Signals} else f"exit code {ended[0]}"
    causes = {
        signal.SIGBUS: f"Shared memory ({SHARED_MEMORY}) was full. {_WAY_OUT}",
        signal.SIGKILL: "Memory was short, most likely. Use fewer of them (--workers), smaller batches or smaller images.",
    }
    return FailedRunError(
        f"A process that loads images ended ({name}). {causes.get(number, 'With --workers 0 the cause may show.')} "
        "What was written before is intact."
    )


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Holds signals to stop back inside the block, and in processes that begin in it until they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _left_alone(number: signal.Signals) -> Iterator[None]:
    """Keeps the handler of a signal: torch's raises an error wherever the process happens to be when a worker ends."""
    handled_here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if handled_here and before is not None:
            signal.signal(number, before)


def _outlive_signals(worker: int) -> None:
    """Leaves signals, which reach the whole process group, to the main process: it still has a checkpoint to write."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    gc.freeze()  # what the main process held is not cleaned up here
