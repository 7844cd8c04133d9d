"""Where the processes of one start meet: a store of torch, in which nothing of an earlier start is found.

torchrun keeps one store for all restarts of a job, with everything that was entered before a restart, so that gloo may connect to
processes that have ended. The processes of a start therefore agree on a name first, by questions that are new in this start.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mapet.errors import LostProcessError, SettingsError, in_one_line
from mapet.runtime.progress import format_seconds
from mapet.runtime.rank import Processes, this_process

Store = dist.Store  # pyright: ignore[reportPrivateImportUsage]
# Processes are started together; they may still import or start at different speeds.
SECONDS_TO_MEET = 1800.0
_LONGEST_PAUSE = 1.0
_MOST_NAMED = 8


@functools.cache
def meeting_place() -> Store:
    """The store of this start, for as long as this process lives.

    With a store for every group, a process that is ahead may find that of the last group before it is gone.

    Raises:
        SettingsError: No address is set.
        LostProcessError: Not all processes come.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise SettingsError(
            f"MASTER_ADDR is '{address}' and MASTER_PORT is '{port}'. Set them to the machine of rank 0 and a free port there, in "
            "all processes; torchrun does so."
        )
    processes, wait = this_process(), timedelta(seconds=SECONDS_TO_MEET)
    try:
        if torchrun_keeps_store():
            store = next(rendezvous("env://", timeout=wait))[0]
        else:
            first = processes.rank == 0
            store = dist.TCPStore(address, int(port), processes.world, first, wait, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
        name = _name_of_start(store, processes, time.monotonic() + SECONDS_TO_MEET)
    except RuntimeError as error:
        raise LostProcessError(
            f"The processes cannot meet at {address}:{port} ({in_one_line(error)}). MASTER_ADDR must be the machine of rank 0, and "
            "MASTER_PORT a port that is free there and that all machines can reach."
        ) from error
    except TimeoutError as error:
        raise LostProcessError(
            f"After {format_seconds(SECONDS_TO_MEET)}, not all of {processes.world} processes came to {address}:{port}: {error} "
            "did not answer. Start all of them, with the same WORLD_SIZE."
        ) from None
    return dist.PrefixStore(f"start {name}", store)  # pyright: ignore[reportPrivateImportUsage]


def torchrun_keeps_store() -> bool:
    """Whether the store is in torchrun's memory; else it is in that of rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _name_of_start(store: Store, processes: Processes, deadline: float) -> str:
    """A name that all processes of this start have, and no others; raises TimeoutError with the ranks that did not answer."""
    proposal = uuid.uuid4().hex
    return _answer(store, processes, proposal, deadline) if processes.rank == 0 else _ask(store, processes, proposal, deadline)


def _answer(store: Store, processes: Processes, name: str, deadline: float) -> str:
    """Gives every question `name` as its answer, until every other process has it."""
    waiting, pause = [*range(1, processes.world)], 0.01
    while True:
        questions = {rank: _read(store, f"question/{rank}") for rank in waiting}
        waiting = [rank for rank in waiting if questions[rank] != name]
        if not waiting:
            return name
        for rank in waiting:
            store.set(f"answer/{rank}", f"{questions[rank]} {name}")
        if time.monotonic() > deadline:
            named = ", ".join(f"rank {rank}" for rank in waiting[:_MOST_NAMED])
            raise TimeoutError(named + (", ..." if len(waiting) > _MOST_NAMED else ""))
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _ask(store: Store, processes: Processes, question: str, deadline: float) -> str:
    """The answer to `question`; a process of an earlier start may still overwrite it, so it is read again and again."""
    pause = 0.01
    while time.monotonic() < deadline:
        store.set(f"question/{processes.rank}", question)
        asked, _, name = _read(store, f"answer/{processes.rank}").partition(" ")
        if asked == question:
            store.set(f"question/{processes.rank}", name)
            return name
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise TimeoutError("rank 0")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
