"""How files tell by their names which split they belong to: train-0000.tar, imagenet-validation-03.parquet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mapet.errors import DataError

_NAMED = re.compile(r"(?<![a-z0-9])(?:(?P<train>train)|(?P<val>val(?:id(?:ation)?)?)|(?P<test>test))(?![a-z])")


def split_of(name: str) -> str | None:
    """The first of "train", "val" (also valid, validation) and "test" that `name` holds as a word of its own."""
    match = _NAMED.search(name.lower())
    return match.lastgroup if match else None


def split_files(files: Sequence[Path]) -> list[list[Path]]:
    """Files by split: train, val, test; empty if they are not named after train and another split.

    Raises:
        DataError: Some are named after splits and others are not.
    """
    groups: dict[str | None, list[Path]] = {"train": [], "val": [], "test": [], None: []}
    for file in files:
        groups[split_of(file.stem)].append(file)
    others = groups.pop(None)
    present = [group for group in groups.values() if group]
    if len(present) < 2 or not groups["train"]:
        return []
    if others:
        raise DataError(
            f"{others[0].parent} holds {others[0].name} beside files named after splits (train, val, validation, test). Rename it, "
            "move it away, or give one file."
        )
    return present
