"""Which processes are missing where an exchange between them fails.

While all goes well, every process makes one entry at the start and none later. A process in which an exchange fails makes a second
entry in the store where the processes met, gives the others a moment to do the same, and names those that did not.
"""

from __future__ import annotations

import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from mapet.errors import LostProcessError, MapetError
from mapet.runtime.meeting import Store
from mapet.runtime.progress import format_seconds
from mapet.runtime.rank import Processes

# How long a process in which an exchange failed waits for the entries of the others.
SECONDS_FOR_ENTRIES = 5.0
_MOST_NAMED = 8
_EXCHANGE_ERRORS = ("gloo/", "NCCL", "process group", "socket", "wait timeout")
_WAY_OUT = "Checkpoints are intact; the same command continues, with any number of processes."


class Attendance:
    """What the processes of one group enter about themselves.

    Args:
        store: Where they met.
        processes: This process among all.
        keeps_store: Whether the store is in the memory of this process.
    """

    def __init__(self, store: Store, processes: Processes, keeps_store: bool) -> None:
        self._store, self._processes, self._keeps_store = store, processes, keeps_store
        self._others = [rank for rank in range(processes.world) if rank != processes.rank]
        self._enter("started", f"process {os.getpid()} on {socket.gethostname()}")

    @contextmanager
    def guard(self, leave: Callable[[], None]) -> Iterator[None]:
        """Inside, an exchange that fails ends in an error that names the missing processes; the others read of any other error.

        Args:
            leave: Leaves the group, so that the exchanges of the others fail now and not when they have waited long enough.

        Raises:
            LostProcessError: Some processes have ended, or did not arrive in time.
        """
        try:
            yield
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # their variables would keep the connections of the group open
            if not _is_of_an_exchange(error):
                self._enter("ended", str(error) if isinstance(error, MapetError) else f"{type(error).__name__} {error}".strip())
                leave()
                self._wait_for_readers()
                raise
            self._enter("waited", "yes")
            leave()
            explanation = self._explanation(str(error))
            self._enter("read", "yes")
            self._wait_for_readers()
            raise LostProcessError(f"{explanation} {_WAY_OUT}") from error

    def _wait_for_readers(self) -> None:
        """Keeps the store until the others have read what they need, where this process holds it."""
        if self._keeps_store:
            self._lacking("ended", "read")

    def _explanation(self, reason: str) -> str:
        try:
            self._lacking("waited", "ended")
            missing = [rank for rank in self._others if self._entry("waited", rank) is None]
            ended = [f"{self._name(rank)} has ended: {words}" for rank in missing if (words := self._entry("ended", rank))]
            named = ", ".join(map(self._name, missing[:_MOST_NAMED])) + (", ..." if len(missing) > _MOST_NAMED else "")
        except RuntimeError:
            return "The processes cannot meet any more: the one that keeps their meeting place has ended, rank 0 or a torchrun."
        if not missing:
            return f"An exchange between {self._processes.world} processes failed, and none is missing: {reason:.300}."
        if ended:
            return "\n".join(ended[:_MOST_NAMED]) + "\n"
        missed = f"{len(missing)} of {self._processes.world} processes"
        if waited := re.search(r"(\d+) ?ms", reason):
            time_waited = format_seconds(int(waited[1]) / 1000)
            return (
                f"After {time_waited}, {missed} did not arrive where the others wait: {named}. They hang, are stopped, or need "
                "longer: mechanics.longest_wait is the number of minutes."
            )
        return f"{missed} ended without a message: {named}. They were killed, perhaps for lack of memory, or their machine is gone."

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self._entry('started', rank) or 'which never started'})"

    def _lacking(self, *kinds: str) -> list[int]:
        """The other ranks that have made no entry of these kinds, after some time to do so."""
        lacking = self._others
        deadline = time.monotonic() + SECONDS_FOR_ENTRIES
        while True:
            lacking = [rank for rank in lacking if not any(self._entry(kind, rank) for kind in kinds)]
            if not lacking or time.monotonic() > deadline:
                return lacking
            time.sleep(0.1)

    def _enter(self, kind: str, text: str) -> None:
        with suppress(RuntimeError):  # the store may be gone with the process that keeps it
            self._store.set(f"{kind}/{self._processes.rank}", text)

    def _entry(self, kind: str, rank: int) -> str | None:
        """What another process has entered, if anything."""
        key = f"{kind}/{rank}"
        return self._store.get(key).decode(errors="replace") if self._store.check([key]) else None


def _is_of_an_exchange(error: BaseException) -> bool:
    """Whether gloo, NCCL or the store raised it."""
    is_known = isinstance(error, dist.DistError)  # pyright: ignore[reportPrivateImportUsage]
    return is_known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _EXCHANGE_ERRORS))
