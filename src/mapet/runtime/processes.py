"""Several processes that work together, as torchrun starts them; with one process every helper here does nothing.

What all of them must agree on goes through `all_sum_`, `broadcast_` and `gather_rows`, which every process calls equally often and
in the same order. An error must therefore be raised in all processes or in none; torchrun ends the others where one dies.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mapet import errors
from mapet.errors import MapetError, SettingsError
from mapet.runtime.attendance import Attendance
from mapet.runtime.lock import only_writer
from mapet.runtime.meeting import meeting_place, torchrun_keeps_store
from mapet.runtime.rank import Processes, this_process
from mapet.runtime.run_directory import package_version

# Minutes that the processes of a training wait for one that does not arrive. While tokenizer and tokens are made, they wait longer:
# one process may have more to read then, or a slower disk.
LONGEST_WAIT = 30.0
_LONGER = 4
# NCCL ends its process where it has waited too long; before that, gloo is to find the same and name the processes.
_LATER = 2


@dataclass
class _Wait:
    """How many minutes exchanges wait now, and in a training."""

    minutes: float
    in_training: float


_wait = _Wait(LONGEST_WAIT * _LONGER, LONGEST_WAIT)


_groups = itertools.count()


@contextmanager
def process_group(device: torch.device | str, longest_wait: float = LONGEST_WAIT) -> Iterator[Processes]:
    """Connects the processes for as long as the block runs: over gloo on the CPU, and over NCCL for tensors on CUDA.

    Where they are connected already, or there is only one, nothing is done. An error that one process raises inside is part of the
    message with which the others end.

    Args:
        device: Where this process computes; "cuda" is the GPU of its local rank, which becomes torch's current one.
        longest_wait: Minutes that an exchange in a training waits for a process that does not arrive; elsewhere four times as many.

    Raises:
        SettingsError: The machine has fewer GPUs than processes, torchrun's variables are incomplete, or the processes run
            different versions of mapet or torch.
        LostProcessError: Another process ended, or did not arrive in time.
    """
    processes = this_process()
    if processes.world == 1 or dist.is_initialized():
        yield processes
        return
    device = processes.device(device)
    if device.type == "cuda":
        _select_gpu(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    _wait.minutes, _wait.in_training = _LONGER * longest_wait, longest_wait
    store = dist.PrefixStore(f"group {next(_groups)}", meeting_place())  # pyright: ignore[reportPrivateImportUsage]
    attendance = Attendance(store, processes, processes.rank == 0 and not torchrun_keeps_store())
    with attendance.guard(_leave):
        wait = timedelta(minutes=_wait.minutes)
        dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.world, timeout=wait)
        _set_timeouts()
    try:
        with attendance.guard(_leave):
            require_agreement({"version of mapet": str(package_version("mapet")), "version of torch": torch.__version__})
            yield processes
    except BaseException:
        _leave()
        raise
    gc.collect()  # DistributedDataParallel that is freed after its group waits for the others
    dist.destroy_process_group()


def _leave() -> None:
    """Leaves the group at once; NCCL would wait for exchanges that others have left."""
    if not dist.is_initialized():
        return
    if dist.get_backend() == "gloo":
        dist.destroy_process_group()
    else:
        dist.distributed_c10d._abort_process_group()


@contextmanager
def training_waits() -> Iterator[None]:
    """Inside, exchanges wait as long as is set for a training, in all groups that there are now."""
    before, _wait.minutes = _wait.minutes, _wait.in_training
    _set_timeouts()
    try:
        yield
    finally:
        _wait.minutes = before
        _set_timeouts()


def _set_timeouts() -> None:
    """Makes all groups of this process wait for `_wait.minutes`."""
    if not dist.is_initialized():
        return
    for group in dist.distributed_c10d._world.pg_map:
        for kind in group._device_types:
            minutes = _wait.minutes * (1 if kind.type == "cpu" else _LATER)
            group._get_backend(kind)._set_default_timeout(timedelta(minutes=minutes))


@contextmanager
def only_writers(out: Path | str | Sequence[Path] | None, processes: Processes) -> Iterator[None]:
    """Makes these processes the only ones that write `out`: the first takes the lock, and none goes on before it has it.

    Args:
        out: What will be written; None is nothing, and needs no lock.
        processes: This process among all.
    """
    outs = [] if out is None else [out] if isinstance(out, Path | str) else out
    with ExitStack() as lock:
        with errors_in_all():
            lock.enter_context(only_writer(*(outs if processes.rank == 0 else [])))
        yield


@contextmanager
def errors_in_all() -> Iterator[None]:
    """Around work that differs from process to process: a `MapetError` in one of them is raised in all, behind the block.

    Of several errors, each process that has one raises its own, and all others raise that of the lowest rank.
    """
    error: MapetError | None = None
    try:
        yield
    except MapetError as raised:
        error = raised
    messages = gather_texts([] if error is None else [json.dumps([type(error).__name__, str(error)])])
    if error is not None:
        raise error
    if messages:
        kind, message = json.loads(messages[0])
        raise getattr(errors, kind, MapetError)(message)


def barrier() -> None:
    """Returns when all processes have called it."""
    all_sum_(torch.zeros(1))


def all_sum_(tensor: Tensor) -> Tensor:
    """Replaces `tensor` by its sum over all processes, the same bits in every one; returns it."""
    if _connected():
        dist.all_reduce(tensor)
    return tensor


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Replaces `tensor` by that of the process of rank `source`; returns it."""
    if _connected():
        dist.broadcast(tensor, source)
    return tensor


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of `tensor` (n, ...) of all processes, in the order of their ranks, in every process; n may differ."""
    if not _connected():
        return tensor
    lengths = gather_numbers(len(tensor))
    padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
    if not padded.numel():
        return tensor.new_zeros(sum(lengths), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded)
    return torch.cat([rows[:length] for rows, length in zip(received, lengths, strict=True)])


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process, the same answer in all of them; nothing is exchanged where there is only one."""
    return bool(all_sum_(torch.tensor(int(flag)))) if _connected() else flag


def require_agreement(facts: Mapping[str, str]) -> None:
    """Refuses processes that differ in one of `facts`, name to value, in all of them at once.

    Raises:
        SettingsError: Names the fact and the processes that differ from the first.
    """
    for name, value in facts.items():
        numbers = gather_numbers(int.from_bytes(hashlib.sha256(value.encode()).digest()[:7]))
        others = [str(rank) for rank, number in enumerate(numbers) if number != numbers[0]]
        if others:
            raise SettingsError(
                f"The processes differ in the {name}: that of rank {', '.join(others)} is not that of rank 0. Start all of "
                "them with the same command on the same data and the same installation."
            )


def gather_texts(texts: list[str]) -> list[str]:
    """The texts of all processes, in the order of their ranks, in every process; cheap where there are none."""
    if not _connected():
        return texts
    if not any(gather_numbers(len(texts))):
        return []
    content = "".join(json.dumps(text) + "\n" for text in texts).encode()
    together = gather_rows(torch.tensor([*content], dtype=torch.uint8))
    return [json.loads(line) for line in bytes(together.tolist()).splitlines()]


def gather_numbers(number: int) -> list[int]:
    """The `number` of every process, in the order of their ranks."""
    numbers = torch.zeros(this_process().world if _connected() else 1, dtype=torch.int64)
    numbers[this_process().rank if _connected() else 0] = number
    return all_sum_(numbers).tolist()


def _connected() -> bool:
    """Whether there are other processes. A missing `process_group` is an error, not a single process."""
    if this_process().world == 1:
        return False
    if not dist.is_initialized():
        raise SettingsError(
            f"torchrun started {this_process().world} processes, but this part of mapet works in one. Start it without torchrun."
        )
    return True


def _select_gpu(device: torch.device) -> None:
    gpus = torch.cuda.device_count()
    if (device.index or 0) >= gpus:
        raise SettingsError(
            f"Process {device.index} of this machine has no GPU of its own: there are {gpus}. Start at most as many processes as "
            "GPUs (torchrun --nproc-per-node), or use the CPU."
        )
    torch.cuda.set_device(device)
