"""Ctrl-C, SIGTERM and SIGUSR1 as a request to stop at the next safe point."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType

from mapet.runtime.progress import say

# Slurm announces the end of a job by it (sbatch --signal=USR1@180); the job is to be started again.
RESTART_SIGNAL = signal.SIGUSR1


class StopRequest:
    """Notes the first SIGINT, SIGTERM or SIGUSR1 inside the block; a second SIGINT stops at once.

    `requested` is checked at safe points, such as between two optimizer steps. `restart` is set where the signal was SIGUSR1, by
    which a scheduler announces that it will end the job and that the job should be started again.
    """

    _signals = (signal.SIGINT, signal.SIGTERM, RESTART_SIGNAL)

    def __init__(self) -> None:
        self.requested = self.restart = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.restart = True, self.restart or number == RESTART_SIGNAL
        with suppress(RuntimeError):  # the signal came in the middle of another line to standard error
            say(f"{signal.Signals(number).name}: finishing this step, then writing a checkpoint. Ctrl-C again stops at once.")
