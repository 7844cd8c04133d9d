"""Masks: files that hold a number for every pixel, and what the numbers mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mapet.data.decode import StoredImage, read_stored
from mapet.data.image_names import SUFFIXES
from mapet.data.labels import LISTINGS, listed_classes
from mapet.data.tree import read_file
from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.regular import read_text

# Besides class numbers, arrays of classes hold these two.
IGNORED, PADDED = -1, -2
IGNORE_ID = 255
ADE20K_LISTING = "objectInfo150.txt"
_FORMATS = ("PNG", "BMP", "GIF", "TIFF")  # keep every number; JPEG would not, whatever the file is called
MASK_SUFFIXES = tuple(suffix for name in _FORMATS for suffix in SUFFIXES[name])
_UNKNOWN = -3
_IGNORED_NAME = re.compile(r"\(ignored?\)\s*$", re.IGNORECASE)


class MaskIds:
    """What the numbers in the masks of a data set stand for.

    Args:
        listing: The file with the class list.
        classes: Names of the classes.
        numbers: Id in a mask to class number, or to `IGNORED`; `IGNORE_ID` is ignored where it is not among them.
    """

    def __init__(self, listing: Path, classes: Sequence[str], numbers: dict[int, int]) -> None:
        self.listing, self.classes = listing, tuple(classes)
        self.named = frozenset(numbers)
        numbers = {IGNORE_ID: IGNORED, **numbers}
        self.class_ids = {value: number for number, value in numbers.items() if value != IGNORED}
        self._numbers = np.full(2**16, _UNKNOWN, np.int16)
        for number, value in numbers.items():
            self._numbers[number] = value
        self._allowed = ", ".join(_ranges(sorted(numbers)))

    def read(self, path: Path) -> np.ndarray:
        """(H, W) int16: the class of every pixel, or `IGNORED`.

        Raises:
            DataError: The file is no mask, or holds a number without a meaning.
        """
        return self.classes_of(read_ids(path), path)

    def classes_of(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """The same of the numbers (H, W) in a mask; `path` is for messages."""
        classes = self._numbers[ids]
        if (classes == _UNKNOWN).any():
            row, column = np.argwhere(classes == _UNKNOWN)[0]
            raise DataError(
                f"{path} has the id {ids[row, column]} (row {row}, column {column}), which is not in {self.listing}; allowed: "
                f"{self._allowed}. Correct the mask, or the list of classes."
            )
        return classes


def ids_of(root: Path) -> MaskIds:
    """What the masks below `root` hold, by the class list that lies there.

    ADE20K's objectInfo150.txt: 1 to 150 are the classes, 0 is ignored. labels.txt or classes.txt: line n is the id n, counted from
    0; a name that ends in "(ignore)" is no class. 255 is ignored unless the list is so long that it names it.

    Raises:
        DataError: There is no list, or fewer than two classes in it.
    """
    if (root / ADE20K_LISTING).is_file():
        names = _ade20k_names(root / ADE20K_LISTING)
        numbers = {0: IGNORED, **{number + 1: number for number in range(len(names))}}
        return MaskIds(root / ADE20K_LISTING, names, numbers)
    listing = next((root / name for name in LISTINGS if (root / name).is_file()), root / LISTINGS[0])
    names = listed_classes(root) or ()
    classes = [name for name in names if not _IGNORED_NAME.search(name)]
    if len(classes) < 2:
        problem = f"names one class only ('{classes[0]}')" if classes else "names no class"
        raise DataError(
            f"{listing} {problem if listing.is_file() else 'is not there'}. Give the class names, one a line, at least two: line 1 "
            "is the id 0 in the masks. End a name in '(ignore)' where it is no class; 255 is ignored anyway. ADE20K has "
            f"{ADE20K_LISTING} instead."
        )
    class_numbers = iter(range(len(classes)))
    numbers = {number: IGNORED if _IGNORED_NAME.search(name) else next(class_numbers) for number, name in enumerate(names)}
    return MaskIds(listing, classes, numbers)


def read_ids(path: Path) -> np.ndarray:
    """(H, W) integers of an 8-bit, 16-bit or palette image, rotated by its EXIF entry, like its image.

    Raises:
        DataError: The file cannot be read, or holds colours.
    """
    try:
        stored = read_stored(read_file(path), _FORMATS)
    except UnreadableImageError as error:
        raise DataError(f"The mask {path} cannot be read: {error}. Repair or remove it.") from error
    _check_stored(path, stored)
    array = np.asarray(stored.image)
    if array.size and (array.min() < 0 or array.max() >= 2**16):
        raise DataError(f"The mask {path} holds values from {array.min()} to {array.max()}; allowed: 0 to {2**16 - 1}.")
    return array.astype(np.int32) // stored.stretch


def _check_stored(path: Path, stored: StoredImage) -> None:
    """Refuses what holds no number for every pixel, or may hold other numbers than were meant."""
    mode = stored.image.mode
    if mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise DataError(
            f"The mask {path} holds colours (mode {mode}), and a number for every pixel is expected: an 8-bit or 16-bit grey image "
            "or a palette image whose values are class ids. Replace every colour by the id of its class."
        )
    if stored.white_is_zero:
        raise DataError(
            f"The mask {path} is a TIFF that stores a negative (0 is white): whether its numbers or their complements are the ids "
            "is unclear. Write it as PNG, or as TIFF in which 0 is black."
        )
    if stored.image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        raise DataError(f"The mask {path} is compressed as a photograph, which changes its numbers. Write it as PNG.")


def _ade20k_names(listing: Path) -> list[str]:
    """The last column of a table with tabs, below its header: "wall, wood" is "wall"."""
    lines = [line for line in read_text(listing, errors="replace").splitlines() if line.strip()]
    rows = [re.split(r"\t+", line.strip()) for line in lines[1:]]
    names = [row[-1].split(",")[0].strip() for row in rows]
    remedy = "Take the file that comes with ADE20K (a header and 150 lines)."
    if len(names) < 2:
        raise DataError(f"{listing} names {len(names)} classes. {remedy}")
    for number, row in enumerate(rows, 1):
        if row[0].strip().isdecimal() and int(row[0]) != number:
            raise DataError(f"{listing} has the id {row[0].strip()} where {number} is due: a line is missing or repeated. {remedy}")
    return names


def _ranges(numbers: list[int]) -> list[str]:
    """0, 1, 2, 255 as "0 to 2" and "255"."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [str(start) if start == end else f"{start} to {end}" for start, end in zip(starts, ends, strict=True)]
