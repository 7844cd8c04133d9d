"""Folders on disk, without hidden entries: what lies in them, and what lies below them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mapet.data.image_names import is_image_name
from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.regular import read_regular

MOST_BYTES = 2**30
# What file systems and other programs put beside images; ignored like hidden folders.
_SYSTEM_FOLDERS = ("lost+found", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def read_file(path: Path) -> bytes:
    """The content of a regular file; raises UnreadableImageError where it cannot be had."""
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        raise UnreadableImageError(f"the file cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise UnreadableImageError(f"the file cannot be opened: {error}") from error


def entries(folder: Path | str) -> tuple[list[str], list[str]]:
    """The names of the folders and of everything else directly in `folder`, both sorted.

    Raises:
        DataError: The folder cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if not entry.name.startswith(".") and entry.name not in _SYSTEM_FOLDERS:
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}. Make it readable, or move it away.") from error
    return sorted(folders), sorted(files)


def visible_folders(root: Path) -> list[Path]:
    """The folders directly in `root`, sorted by name, without hidden ones."""
    return [Path(root) / name for name in entries(root)[0]]


def loose_images(root: Path) -> list[str]:
    """The names of the images directly in `root`, sorted; a link that leads nowhere counts, so that it is named when read."""
    return [name for name in entries(root)[1] if is_image_name(name)]


def holds_images(root: Path) -> bool:
    """Whether there is any image file in `root` or below it."""
    return any(is_image_name(file) for file in Walk().files(root, ""))


class Walk:
    """Walks folders; one that links lead to again is read once, and belongs to one class."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, Path]] = {}

    def files(self, folder: Path, owner: str) -> Iterator[str]:
        """Paths of the files below `folder`, relative to it: those of a folder in order, then those of its folders in order.

        Args:
            folder: Where to begin.
            owner: The class that the files belong to, or "".

        Raises:
            DataError: A folder cannot be read, or belongs to another class too.
        """
        waiting = [""]
        while waiting:
            within = waiting.pop()
            current = folder / within
            if not self._claim(current, owner):
                continue
            folders, files = entries(current)
            prefix = f"{within}/" if within else ""
            yield from (prefix + name for name in files)
            waiting += [prefix + name for name in reversed(folders)]

    def _claim(self, folder: Path, owner: str) -> bool:
        """Whether `folder` is met for the first time."""
        before, at = self._owners.setdefault(os.path.realpath(folder), (owner, folder))
        if before != owner:
            raise DataError(
                f"A link makes one folder part of two classes: {folder} is {at}, of '{owner}' and of '{before}'. Remove the link."
            )
        return at is folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Unlike `entry.is_dir`, has an answer for links in a circle."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))  # noqa: PTH112
