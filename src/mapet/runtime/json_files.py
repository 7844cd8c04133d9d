"""JSON from files that anybody may have written: every failure is a ValueError or an error in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mapet.errors import CheckpointError, MapetError
from mapet.runtime.regular import read_regular

MOST_BYTES = 2**28
MOST_LEVELS = 100
MOST_DIGITS = 40
SEAL = "own_sha256"
_NAMES = {dict: "an object", list: "a list"}


def parse_json(text: str) -> Any:
    """The value that a JSON text holds.

    Raises:
        ValueError: It is no JSON, names a key twice, nests too deeply, or has a number of too many digits.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_int=_short_integer)
    except RecursionError:
        _too_deep()
    _check_depth(value)
    return value


def read_json(path: Path, kind: type = object, error: type[MapetError] = CheckpointError) -> Any:
    """The content of a JSON file.

    Args:
        path: A regular file; nothing else is opened.
        kind: What the outermost value must be: `dict`, `list`, or anything.
        error: The class of what is raised.

    Raises:
        MapetError: An `error` that names the file, where it is missing, damaged or of another kind.
    """
    try:
        value = parse_json(read_regular(path, MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read: {reason}. The file is damaged or missing.") from None
    if not isinstance(value, kind):
        raise error(f"{path} is damaged: it holds a {type(value).__name__}, not {_NAMES.get(kind, kind.__name__)}.")
    return value


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, which are JSON, with a checksum over all of them as the last entry."""
    return {**values, SEAL: _digest(values)}


def unsealed(
    values: Mapping[str, Any], path: Path, error: type[MapetError] = CheckpointError, *, required: bool = False
) -> dict[str, Any]:
    """The entries without their checksum.

    Args:
        values: As `sealed` gave them.
        path: The file, for messages.
        error: The class of what is raised.
        required: Whether there must be a checksum; else there need not, as in files of earlier releases.

    Raises:
        MapetError: An `error`, where an entry is not what was written.
    """
    entries = {name: value for name, value in values.items() if name != SEAL}
    if (required or SEAL in values) and values.get(SEAL) != _digest(entries):
        raise error(f"{path} is not what was written (cut off or changed). Get it or write it again.")
    return entries


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names '{next(name for name in names if names.count(name) > 1)}' twice")
    return values


def _short_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits; allowed: {MOST_DIGITS}")
    return int(digits)


def _check_depth(value: Any) -> None:
    """Refuses what the code that walks through it could not."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    _too_deep()


def _too_deep() -> NoReturn:
    raise ValueError(f"it nests more than {MOST_LEVELS} levels") from None
