"""Files with one JSON object a line, which a crash may cut off and a disk may garble: what is left of them, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mapet.errors import CheckpointError
from mapet.runtime.files import storage_errors
from mapet.runtime.regular import append_regular, read_regular

_LARGEST_STEP = 2**53
_MOST_BYTES = 2**34


class Lines(NamedTuple):
    """What was read.

    Args:
        path: The file.
        entries: The objects, in order.
        damaged: How many lines are none, or lack what every entry has; they are left out.
    """

    path: Path
    entries: list[dict[str, Any]]
    damaged: int

    def remark(self) -> str | None:
        """That lines are left out; None where all were read."""
        return f"{self.damaged} lines of {self.path} are cut off or damaged and left out." if self.damaged else None


def read_lines(path: Path, is_entry: Callable[[dict[str, Any]], bool]) -> Lines:
    """The objects in the lines of `path` that `is_entry` accepts; no lines where there is no such file.

    Raises:
        CheckpointError: It is no regular file, or may not be read.
    """
    try:
        texts = read_regular(path, _MOST_BYTES).splitlines() if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Move it away.") from None
    entries = [entry for entry in map(_parsed, texts) if entry is not None and is_entry(entry)]
    return Lines(path, entries, len(texts) - len(entries))


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Adds an object to the file, which is made where there is none.

    Raises:
        StorageError: It cannot be written, or is no regular file.
    """
    with storage_errors(path), append_regular(path) as file:
        file.write(json.dumps(entry).encode() + b"\n")


def is_number(value: Any) -> bool:
    """Whether `value` can be a measurement: a float, also NaN or infinity, or an integer that a float can hold."""
    return isinstance(value, float) or is_step(value)


def is_step(value: Any) -> bool:
    """Whether `value` can be the number of a step."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST_STEP <= value <= _LARGEST_STEP


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
