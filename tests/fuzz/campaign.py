"""Runs one reader over many damaged inputs and keeps those that end in anything but a result or a MapetError."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mapet.errors import MapetError
from tests.fuzz.readers import Reader

SECONDS_PER_INPUT = 20
MOST_RINGS = 6  # on a busy machine: while the process has had less than half of the time, it goes on


class TookTooLong(BaseException):
    """Raised by the clock; no `except Exception` on the way takes it for something else."""


@dataclass
class Outcome:
    """What became of the inputs.

    Attributes:
        ends: How many were read, how many refused.
        faults: Seed, damaged file and traceback of every input that ended otherwise.
        slowest: Seconds of the input that took longest.
    """

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    slowest: float = 0.0


def run(reader: Reader, folder: Path, seeds: range, kept: Path | None = None) -> Outcome:
    """Reads the input of `reader`, made in the empty `folder`, once for every seed, each time with other damage.

    Args:
        reader: One of READERS.
        folder: Where to work.
        seeds: One a damaged input.
        kept: Where inputs that end in a fault are kept; None for nowhere.
    """
    pristine, work, outcome = folder / "pristine", folder / "work", Outcome()
    pristine.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        reader.make(pristine)
        shutil.copytree(pristine, work)
        reader.read(work)
        for seed in seeds:
            draws = random.Random(seed)
            name = draws.choice([*reader.damaged])
            (work / name).write_bytes(reader.damaged[name]((pristine / name).read_bytes(), draws))
            began = time.perf_counter()
            fault = _read(reader, work, outcome)
            outcome.slowest = max(outcome.slowest, time.perf_counter() - began)
            if fault:
                outcome.faults.append((seed, name, fault))
                if kept is not None:
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(work / name, kept / f"{seed}-{Path(name).name}")
            (work / name).write_bytes((pristine / name).read_bytes())
    return outcome


def _read(reader: Reader, work: Path, outcome: Outcome) -> str | None:
    """The traceback of what ended in neither a result nor a MapetError."""
    try:
        with _clock(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(work)
        outcome.ends["read"] += 1
    except MapetError as error:
        if not str(error).strip():
            return "a MapetError without words"
        outcome.ends["refused"] += 1
    except KeyboardInterrupt:
        raise
    except BaseException:
        return traceback.format_exc(limit=-4)
    return None


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    began, rings = time.process_time(), 0

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rings
        rings += 1
        if time.process_time() - began > SECONDS_PER_INPUT / 2 or rings == MOST_RINGS:
            raise TookTooLong(f"longer than {SECONDS_PER_INPUT} s")

    before = signal.signal(signal.SIGALRM, ring)
    remaining = signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT, SECONDS_PER_INPUT)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, before)
