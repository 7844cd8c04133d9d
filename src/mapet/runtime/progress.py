"""Progress that is always visible: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mapet.runtime.printable import printable
from mapet.runtime.rank import this_process_is_first

SECONDS_BETWEEN_LINES = 10.0
_SHARE_BETWEEN_LINES = 0.05  # of the time so far: a night in a log file is a hundred lines, and not thousands

_printed_facts: ContextVar[set[str] | None] = ContextVar("printed facts", default=None)

console = Console(stderr=True, highlight=False)


class _NotedProgress(Progress):
    """Shows the note of a task below its bar, so that 80 columns are enough for both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"  {task.fields['note']}") for task in self.tasks if task.fields["note"])


class ProgressBar:
    """One bar; `advance` moves it, `note` sets the text at its end."""

    def __init__(self, description: str, total: int, start: int = 0, after: float = 0.0) -> None:
        description = printable(description)
        self.description, self.total, self.done, self.after = description, total, start, after
        self._note = ""
        self._began = self._spoke = time.monotonic()
        self._first = start
        self._printed = (start, "")
        self._live: Progress | None = None
        self._is_visible = this_process_is_first()
        if self._is_visible and console.is_terminal:
            self._live = _NotedProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task(description, total=total, completed=start, note="")
            self._show()

    def advance(self, amount: int = 1) -> None:
        """Moves the bar by `amount`."""
        self.done += amount
        if self._live is not None:
            self._live.update(self._task, completed=self.done)
            self._show()
        elif self._is_visible and self._is_time_for_a_line():
            self._print_line()

    def note(self, text: str) -> None:
        """Shows `text` behind the bar, for example the loss."""
        text = printable(text)
        self._note = text
        if self._live is not None:
            self._live.update(self._task, note=text)

    def close(self) -> None:
        """Ends the bar; in a log file a last line has the duration."""
        if self._live is not None:
            self._live.stop()
        elif self._is_visible and self._printed != (self.done, self._note) and self._is_worth_a_last_line():
            self._print_line()

    def _show(self) -> None:
        if self._live is not None and time.monotonic() - self._began >= self.after:
            self._live.start()  # again and again does no harm

    def _is_time_for_a_line(self) -> bool:
        now = time.monotonic()
        return now - self._spoke >= max(SECONDS_BETWEEN_LINES, _SHARE_BETWEEN_LINES * (now - self._began))

    def _is_worth_a_last_line(self) -> bool:
        return self._spoke != self._began or time.monotonic() - self._began > 2.0

    def _print_line(self) -> None:
        self._spoke = time.monotonic()
        self._printed = (self.done, self._note)
        elapsed = self._spoke - self._began
        moved = self.done - self._first
        seconds_left = elapsed / moved * (self.total - self.done) if moved else float("nan")
        eta = f", eta {format_seconds(seconds_left)}" if self.done < self.total and moved else ""
        print(
            f"{self.description} {self.done}/{self.total} in {format_seconds(elapsed)}{eta}  {self._note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def progress(description: str, total: int, start: int = 0, after: float = 0.0) -> Iterator[ProgressBar]:
    """Shows progress over `total` units for as long as the block runs; `after` that many seconds, where it may be over sooner."""
    bar = ProgressBar(description, total, start, after)
    try:
        yield bar
    finally:
        bar.close()


def say(message: str) -> None:
    """One line to the user, on standard error, above any live bar; what a file name holds besides text is escaped.

    Of several processes that work together, only the first writes it.
    """
    if not this_process_is_first():
        return
    console.print(printable(message), markup=False, soft_wrap=True)


def say_fact(message: str) -> None:
    """As `say`, of images or settings: inside `facts_once`, the same fact is not repeated."""
    printed = _printed_facts.get()
    if printed is None or message not in printed:
        say(message)
    if printed is not None:
        printed.add(message)


@contextmanager
def facts_once() -> Iterator[None]:
    """Many runs on the same images: what `say_fact` says of them is said once."""
    token = _printed_facts.set(set())
    try:
        yield
    finally:
        _printed_facts.reset(token)


def format_seconds(seconds: float) -> str:
    """Seconds as people write them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
