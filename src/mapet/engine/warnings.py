"""warnings.jsonl: each warning of a training, printed once, and withdrawn when its cause is gone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapet.runtime.files import write_text
from mapet.runtime.jsonl import Lines, append_line, is_step, read_lines
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory


class Warnings:
    """The warnings of a training: each is printed once, and again only after it was withdrawn.

    Args:
        directory: Where warnings.jsonl is written.
        first_step: Where this start continues; warnings of later steps that an earlier start wrote are removed.
        writes: Whether this process prints and writes; of several processes, only the first does.
    """

    def __init__(self, directory: RunDirectory, first_step: int, writes: bool = True) -> None:
        self._path, self._writes = warnings_file(directory), writes
        lines = warning_lines(directory)
        earlier_lines = [line for line in lines.entries if line["step"] <= first_step]
        if writes and (remark := lines.remark()):
            say(remark)
        if writes and self._path.is_file():
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in earlier_lines))
        self._printed = {line["name"] for line in earlier_lines}
        self._standing = {line["name"] for line in standing_warnings(earlier_lines)}
        self._withdrawn = {line["name"] for line in earlier_lines if line["message"] is None}

    def update(self, step: int, name: str, message: str | None) -> None:
        """Prints and writes a warning that is new, or the withdrawal (None) of one that stands."""
        again = name in self._withdrawn and name not in self._standing
        if message is not None and (name not in self._printed or again):
            self._keep(step, name, message, f"WARNING at step {step}: {message}")
            self._printed.add(name)
            self._standing.add(name)
        elif message is None and name in self._standing:
            self._keep(step, name, None, f"At step {step} the warning '{name}' no longer holds.")
            self._standing.remove(name)
            self._withdrawn.add(name)

    def _keep(self, step: int, name: str, message: str | None, words: str) -> None:
        if not self._writes:
            return
        say(words)
        append_line(self._path, {"step": step, "name": name, "message": message})


def warnings_file(directory: RunDirectory) -> Path:
    """Where the warnings of a run are kept, one a line; a line without a message withdraws the one of its name."""
    return directory.path / "warnings.jsonl"


def read_warnings(directory: RunDirectory) -> list[dict[str, Any]]:
    """The entries of warnings.jsonl: step, name, message; a line that is cut off or damaged is left out."""
    return warning_lines(directory).entries


def warning_lines(directory: RunDirectory) -> Lines:
    """The same, with how many lines are no entries."""
    return read_lines(warnings_file(directory), _is_warning)


def standing_warnings(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were not withdrawn later."""
    standing: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["message"] is None:
            standing.pop(line["name"], None)
        else:
            standing[line["name"]] = line
    return [*standing.values()]


def _is_warning(line: dict[str, Any]) -> bool:
    texts = isinstance(line.get("name"), str) and isinstance(line.get("message", 0), str | None)
    return texts and is_step(line.get("step"))
