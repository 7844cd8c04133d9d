"""Every error that mapet raises on purpose.

MapetError
├── UsageError              the request cannot be met as given          (exit code 2)
│   ├── SettingsError       a recipe, a setting or an option
│   │   └── NotAllowedError  a file names code or an address that the user did not type
│   ├── DataError           images, folders, labels
│   │   └── UnreadableImageError  one image, which may be skipped
│   ├── ModelError          a backbone or an objective, or weights that do not fit it
│   ├── TokenizerError      a tokenizer or its input
│   ├── TokenStoreError     stored tokens that do not belong to these images
│   ├── CheckpointError     a run that cannot be continued
│   └── InUseError          a folder that another process writes
├── FailedRunError          the request was fine, the run was not       (exit code 1)
│   ├── NonFiniteLossError  NaN or infinity in the loss or its gradient
│   ├── LostProcessError    of several processes, some ended or did not arrive
│   └── StorageError        the disk is full or not writable
├── InterruptedRunError     Ctrl-C or SIGTERM, after a checkpoint       (exit code 130)
│   └── RequeueError        SIGUSR1, after a checkpoint                 (exit code 75)
└── NotThereError           a section of a report has nothing to show   (said in the report)

A message has the problem, the value, the allowed values, and a remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class MapetError(Exception):
    """Base of all errors that mapet raises on purpose."""

    exit_code = 1


class UsageError(MapetError):
    """The request cannot be met as given; the message has the necessary change."""

    exit_code = 2


class SettingsError(UsageError):
    """A recipe, a setting or an option is wrong."""


class NotAllowedError(SettingsError):
    """A file names code, an address or another file, and the user did not type the name."""


class DataError(UsageError):
    """Images, folders or labels are missing, unreadable or contradictory."""


class UnreadableImageError(DataError):
    """One image cannot be had; the message is the reason, in words that follow the file's name."""


class ModelError(UsageError):
    """A backbone or an objective cannot be built, or weights do not fit it."""


class TokenizerError(UsageError):
    """A tokenizer cannot be loaded, fitted or applied to this input."""


class TokenStoreError(UsageError):
    """Stored tokens do not belong to these images, this tokenizer or this view."""


class CheckpointError(UsageError):
    """A run cannot be continued, or its files are damaged."""


class InUseError(UsageError):
    """Another process writes to the same place; the message names it."""


class FailedRunError(MapetError):
    """The request was fine; the run failed."""


class NonFiniteLossError(FailedRunError):
    """The loss or its gradient became NaN or infinite; the optimizer has not moved."""


class LostProcessError(FailedRunError):
    """Of several processes that work together, some ended or did not arrive; the message names them."""


class StorageError(FailedRunError):
    """The disk is full or not writable; what was written before is intact."""


class InterruptedRunError(MapetError):
    """The user or the scheduler stopped the run; everything needed to continue is on disk."""

    exit_code = 130


class RequeueError(InterruptedRunError):
    """The scheduler announced by SIGUSR1 that the job ends; the same command continues, so the job is to be queued again."""

    exit_code = 75


class NotThereError(MapetError):
    """A run lacks the data for a section of its report; the message has the command that adds it."""


_MOST_NAMES, _SHOWN_OF_MORE = 20, 5
_MOST_LETTERS = 300


def in_one_line(error: BaseException) -> str:
    """The beginning of what an exception of another library states, for the middle of a message; without words, its class."""
    return " ".join(str(error).split())[:_MOST_LETTERS].rstrip(".:") or type(error).__name__


_KINDS = {
    "float": "a number",
    "finite": "a number that is neither NaN nor infinite",
    "int": "a whole number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list in brackets, such as [0.2, 1.0]",
    "list": "a list in brackets, such as [0.2, 1.0]",
    "dict": "names with values",
    "model": "names with values",
    "none": "null",
}
_BOUNDS = {
    "greater_than": ("a number above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("a number below", "lt"),
    "less_than_equal": ("at most", "le"),
    "too_long": ("a list whose length is at most", "max_length"),
    "string_too_long": ("text whose length is at most", "max_length"),
    "too_short": ("a list whose length is at least", "min_length"),
}


def allowed_values(problems: Sequence[Mapping[str, Any]]) -> str:
    """What is allowed where pydantic has found `problems` with one value, as the end of a sentence."""
    return " or ".join(dict.fromkeys(map(_allowed_value, problems)))


def _allowed_value(problem: Mapping[str, Any]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _BOUNDS:
        words, limit = _BOUNDS[kind]
        return f"{words} {context[limit]:,}" if isinstance(context[limit], int) else f"{words} {context[limit]:g}"
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    return _KINDS.get(kind.partition("_")[0], str(problem["msg"]))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name if there is one, and all of them (of more than 20, five)."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    if len(names) <= _MOST_NAMES:
        return f"{hint}Allowed: {', '.join(names)}."
    closest = difflib.get_close_matches(name, names, n=_SHOWN_OF_MORE, cutoff=0.0)
    return f"{hint}Allowed: {len(names)} names, of which {', '.join(closest)} come closest."
