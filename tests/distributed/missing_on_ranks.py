"""What each of several processes ends with where one of them hangs, fails, is killed or differs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from mapet.errors import DataError, LostProcessError, MapetError
from mapet.runtime import attendance, meeting, processes
from mapet.runtime.processes import all_sum_, barrier, process_group, this_process, training_waits

SECONDS = 2.0


def ended_with(where: str, seconds: float = 60.0) -> str:
    """Exchanges until one fails; the last process does what `where` names instead."""
    attendance.SECONDS_FOR_ENTRIES = 2.0
    meeting.SECONDS_TO_MEET = 4 * seconds
    rank, world = this_process().rank, this_process().world
    began = time.monotonic()
    try:
        with process_group("cpu", longest_wait=seconds / 60):
            barrier()
            with training_waits():
                if rank == world - 1:
                    act(where)
                all_sum_(torch.ones(1000))
    except LostProcessError as error:
        return f"{time.monotonic() - began:.1f} s: {error}"
    except MapetError as error:
        return f"own: {error}"
    return "nothing"


def act(where: str) -> None:
    if where == "hangs":
        time.sleep(SECONDS + 4.0)
    elif where == "fails":
        raise DataError("This folder has no images.")
    elif where == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


def hang(folder: Path) -> str:
    return ended_with("hangs", SECONDS)


def fail(folder: Path) -> str:
    return ended_with("fails")


def die(folder: Path) -> str:
    return ended_with("dies")


def differ(folder: Path) -> str:
    """Another version of mapet in the last process."""
    if this_process().rank == this_process().world - 1:
        processes.package_version = lambda name: "0.0.7"
    return ended_with("")


def stay_away(folder: Path) -> str:
    """The last process never joins."""
    if this_process().rank == this_process().world - 1:
        time.sleep(SECONDS * 4 + 1.0)
        return "away"
    return ended_with("", SECONDS)
