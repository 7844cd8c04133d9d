"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType

from mapet.runtime.progress import say


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
        with suppress(RuntimeError):  # the signal came in the middle of another line to standard error
            say(f"{signal.Signals(number).name}: finishing this step, then writing a checkpoint. Ctrl-C again stops at once.")
