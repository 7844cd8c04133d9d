"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import signal
from types import FrameType

from mapet.errors import MapetError
from mapet.runtime.progress import say


class InterruptedRunError(MapetError):
    """The user or the scheduler asked the run to stop; everything needed to continue is on disk."""

    exit_code = 130


class StopRequest:
    """Notes the first SIGINT or SIGTERM inside the block; a second SIGINT stops at once.

    `requested` is asked for at safe points, such as between two optimizer steps.
    """

    _signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        say(f"{signal.Signals(number).name}: finishing this step, then writing a checkpoint. Ctrl-C again stops at once.")
