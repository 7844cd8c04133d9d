"""Folders of image files: flat, one folder per class, or sorted into train/ and val/.

Class folders: every folder directly below is a class, whatever lies deeper belongs to it. Loose images beside folders: the whole
tree is one unlabelled collection, and a line says so. Hidden files and folders are ignored, links are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.progress import say

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
HELD_OUT_NAMES = ("val", "validation", "test")


class FolderImages:
    """The image files below a folder, in sorted order.

    Args:
        root: The folder.
        location: What the user gave, for messages; the folder itself by default.
        classes: Class names to number labels by (those of the training part); by default the class folders' sorted names.

    Attributes:
        only_folder: The one folder that all images lay in, which was opened in place of the one around it; None without it.

    Raises:
        DataError: No images, a class folder without images, or a class folder that is not among `classes`.
    """

    def __init__(self, root: Path, location: str | None = None, classes: tuple[str, ...] | None = None) -> None:
        self._root = Path(root)
        self.location = location or str(root)
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        self.only_folder: str | None = None
        self._files = self.loose_images(self._root)
        by_folder = {folder.name: [*_walk(folder)] for folder in visible_folders(self._root)}
        if by_folder and not self._files:
            self._take_classes(by_folder, classes)
        else:
            self._take_unlabelled(by_folder)

    @staticmethod
    def loose_images(root: Path) -> list[str]:
        """The names of the images directly in `root`, sorted; a link that leads nowhere counts, so that it is named when read."""
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if is_image_name(entry.name) and _is_file_or_lost(entry))

    def _take_classes(self, by_folder: dict[str, list[str]], classes: tuple[str, ...] | None) -> None:
        empty = [name for name, files in by_folder.items() if not files]
        if len(empty) == len(by_folder):
            raise self._no_images()
        if empty:
            raise DataError(
                f"The class folder {self._root / empty[0]} holds no images ({len(empty)} of {len(by_folder)} class folders are "
                f"empty). Fill it or remove it; files ending in {_suffixes()} count as images."
            )
        self.classes = classes or tuple(by_folder)
        numbers = {name: number for number, name in enumerate(self.classes)}
        if foreign := [name for name in by_folder if name not in numbers]:
            raise DataError(
                f"{self._root} has the class folder '{foreign[0]}', which the training images lack; they have "
                f"{len(self.classes)} classes: {_few(self.classes)}. Use the same folder names in both."
            )
        self._files = [f"{name}/{file}" for name, files in by_folder.items() for file in files]
        self.labels = np.repeat([numbers[name] for name in by_folder], [len(files) for files in by_folder.values()])

    def _take_unlabelled(self, by_folder: dict[str, list[str]]) -> None:
        loose = len(self._files)
        self._files = sorted([*self._files, *(f"{name}/{file}" for name, files in by_folder.items() for file in files)])
        if not self._files:
            raise self._no_images()
        if len(self._files) > loose:
            say(
                f"{self._root} holds {loose} loose images beside folders of images ({_few(by_folder)}): taken as one unlabelled "
                "collection. Move the loose ones away to use the folders as classes."
            )

    def _no_images(self) -> DataError:
        return DataError(f"{self._root} holds no images: nothing in it or below it ends in {_suffixes()}.")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        """The content of one file."""
        return read_file(self._root / self._files[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._files[index])


def is_image_name(name: str) -> bool:
    """Whether a file of that name counts as an image: by its suffix, in any case, and not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def read_file(path: Path) -> bytes:
    """The content of a file; raises UnreadableImageError where it cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"the file cannot be opened: {error.strerror}") from error


def holds_images(root: Path) -> bool:
    """Whether there is any image file in `root` or below it."""
    return bool(FolderImages.loose_images(root)) or any(True for folder in visible_folders(root) for _ in _walk(folder))


def visible_folders(root: Path) -> list[Path]:
    """The folders directly in `root`, sorted by name, without hidden ones."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith("."))


def split_folders(root: Path) -> list[Path]:
    """train/ and what is held out, in the order val, validation, test; empty if one of the two is missing."""
    held_out = [root / name for name in HELD_OUT_NAMES if (root / name).is_dir()]
    return [root / "train", *held_out] if held_out and (root / "train").is_dir() else []


def _walk(folder: Path) -> Iterator[str]:
    """Paths below `folder`, relative to it, sorted; a folder that links lead to twice is read once."""
    seen = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(current).relative_to(folder)
        yield from (str(prefix / name) for name in sorted(files) if is_image_name(name))


def _is_file_or_lost(entry: os.DirEntry[str]) -> bool:
    """Unlike `entry.is_file`, has an answer for links in a circle."""
    return os.path.isfile(entry.path) or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110, PTH113


def _few(names: tuple[str, ...] | dict[str, list[str]]) -> str:
    return ", ".join([*names][:5]) + (", ..." if len(names) > 5 else "")


def _suffixes() -> str:
    return " ".join(IMAGE_SUFFIXES)
