"""`mapet`: turns errors and signals into words and exit codes.

Nothing heavy is imported before the handlers of signals are in place.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import threading
from contextlib import redirect_stdout
from contextvars import copy_context
from types import FrameType
from typing import TextIO, cast

INTERRUPTED, REQUEUE = 130, 75


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class _Interrupted(KeyboardInterrupt):
    """Raised in place of its base: where that has left an `eval`, Python ends `python -m` by SIGINT, whatever the exit code."""


class _Interruption:
    """Ends the command at the first SIGINT, SIGTERM or SIGUSR1 inside the block, and the process at the second.

    The first raises KeyboardInterrupt, so that unfinished files are removed. While a module is imported it ends the process too:
    many modules do not survive an exception there. Trainings have a handler of their own, which writes a checkpoint first.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._end) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None or _imports(frame):
            os.write(2, f"mapet: {self._words(number)}\n".encode())
            os._exit(_code(number))
        self.number = number
        raise _Interrupted

    def report(self) -> None:
        """One line to the user, behind everything that was cleaned up."""
        print(f"mapet: {self._words(self.number or signal.SIGINT)}", file=sys.stderr)

    def _words(self, number: int) -> str:
        return f"interrupted ({signal.Signals(number).name})"


# What looking for a path that the user gave can end in, before anything is opened.
_OF_PATHS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)


def _code(number: int | None) -> int:
    return REQUEUE if number == signal.SIGUSR1 else INTERRUPTED


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _keep_exit_code() -> None:
    """The work is over: a signal while Python takes its modules down, which may take seconds, must not make a failure of it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Entry point: exit code 2 for a request that cannot be met, 1 for a failure, 130 for an interrupted run.

    SIGUSR1, by which a scheduler announces the end of a job, ends in 75: the job is to be queued again.
    """
    atexit.register(_keep_exit_code)
    with _Interruption() as interruption:
        try:
            code = _run()
        except BaseException as error:
            ended = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == INTERRUPTED)
            if interruption.number is None and not ended:
                raise
            interruption.report()
            code = _code(interruption.number)
        sys.exit(code)


def _run() -> int:
    """Runs the command; typer ends it by SystemExit, also after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read with torch: threads that wait leave the core to other programs
    from mapet.cli.app import app
    from mapet.errors import MapetError
    from mapet.runtime.allocator import keep_freed_memory
    from mapet.runtime.printable import PrintableText, printable

    keep_freed_memory()
    try:
        with redirect_stdout(cast(TextIO, PrintableText(sys.stdout))):
            copy_context().run(app)  # what one command allows is not allowed to the next one of the same process
    except MapetError as error:
        print(printable(f"mapet: {error}"), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _OF_PATHS or error.filename is None:
            raise
        path = f"{error.filename!s:.80}"
        print(printable(f"mapet: {error.strerror}: {path}. Give another path, or permission to read it."), file=sys.stderr)
        return 2
    return 0
