"""Where images come from: one protocol, and one function that opens whatever a user names.

A location is `digits`, a folder of images, a Parquet file, a folder of Parquet files, a folder with train/ and val/ (or
validation/, or test/) subfolders, or `package.module:factory`. A sample is known by its content (`sample_key`), never by its name
or position.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from mapet.data.decode import UnreadableImageError
from mapet.data.folder import FolderImages, split_folders, visible_folders
from mapet.data.parquet import ParquetImages, split_files
from mapet.errors import DataError, nearest
from mapet.registry import Registry
from mapet.runtime.progress import progress

SPLITS = ("train", "test", "all")
HELD_OUT_SHARE = 0.2
HASHING_THREADS = 8
SHOW_PROGRESS_FROM = 20_000


class ImageSource(Protocol):
    """A finite, ordered collection of encoded images.

    Attributes:
        location: What the user gave, for messages.
        labels: (n,) int64 class numbers, or None.
        classes: Class names, or None.
    """

    location: str
    labels: np.ndarray | None
    classes: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded content of one image; raises `UnreadableImageError` where there is none to be had."""
        ...

    def describe(self, index: int) -> str:
        """What a user would look for: a path, or "train.parquet row 17 (name)"."""
        ...


SourceFactory = Callable[[str, str], ImageSource]

SOURCES: Registry[SourceFactory] = Registry("data source", {"digits": "mapet.data.digits:open_digits"})


def sample_key(content: bytes) -> str:
    """The identity of a sample, 32 hex digits: a renamed file keeps it, a changed pixel changes it."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sample_keys(source: ImageSource) -> list[str]:
    """The key of every sample, in order, read by several threads; "" where the file itself cannot be read."""

    def key(index: int) -> str:
        try:
            return sample_key(source.read(index))
        except UnreadableImageError:
            return ""

    if len(source) < SHOW_PROGRESS_FROM:
        return [key(index) for index in range(len(source))]
    keys = []
    with progress("Reading sample keys", len(source)) as bar, ThreadPoolExecutor(HASHING_THREADS) as pool:
        for start in range(0, len(source), 1000):
            keys += pool.map(key, range(start, min(start + 1000, len(source))))
            bar.advance(len(keys) - bar.done)
    return keys


def open_source(location: str | Path, split: str = "train") -> ImageSource:
    """Opens the images at `location`.

    Splits of its own (train/ and val/ folders, train*.parquet and test*.parquet) are used where they exist: `test` is then val or
    validation if present, and test otherwise. Without them, `test` is every sample whose key hashes below 20 % and `train` the
    rest, which depends on the images only, not on their names or order.

    Args:
        location: What the user gave; see the top of this module. Names of SOURCES go before folders: write ./digits for a folder.
        split: "train", "test" or "all".

    Raises:
        DataError: Nothing usable is there; the message says what was looked for.
    """
    if split not in SPLITS:
        raise DataError(f"There is no split '{split}'. {nearest(split, SPLITS)}")
    name, path = str(location), Path(location)
    if name in SOURCES or (re.fullmatch(r"[\w.]+:\w+", name) and not path.exists()):
        return SOURCES.get(name)(name, split)
    if not path.exists():
        raise DataError(
            f"There is no file or folder {path}. Give a folder of images, a Parquet file, or the name of an embedded set. "
            f"{nearest(name, SOURCES)}"
        )
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise DataError(f"{path} is a single file. Give the folder that holds the images, or a .parquet file.")
    parts: list[ImageSource] = [ParquetImages([path], name)] if path.is_file() else _open_parts(path, name)
    if len(parts) == 1:
        return split_by_content(parts[0], split)
    return Concatenation(parts, name) if split == "all" else parts[SPLITS.index(split)]


def _open_parts(path: Path, location: str) -> list[ImageSource]:
    """The splits in a folder, training part first, best held-out part second; one part if it is not split."""
    if files := split_files(path):
        return [ParquetImages(group, location) for group in files]
    if folders := split_folders(path):
        train = _open_whole(folders[0], location)
        return [train, *(_open_whole(folder, location, train.classes) for folder in folders[1:])]
    if (only := _only_folder(path)) is not None:
        return _open_parts(only, location)
    return [_open_whole(path, location)]


def _open_whole(path: Path, location: str, classes: tuple[str, ...] | None = None) -> ImageSource:
    if files := sorted(path.glob("*.parquet")):
        return ParquetImages(files, location)
    only = _only_folder(path)
    if only is not None and only.name not in (classes or ()):
        return _open_whole(only, location, classes)
    return FolderImages(path, location, classes)


def _only_folder(path: Path) -> Path | None:
    """The single folder in `path` if there is nothing else to use: it stands for `path`, as one class would say nothing."""
    folders = visible_folders(path)
    alone = len(folders) == 1 and not FolderImages.loose_images(path) and not any(path.glob("*.parquet"))
    return folders[0] if alone else None


def split_by_content(source: ImageSource, split: str) -> ImageSource:
    """The `train`, `test` or `all` part of a source that has no splits of its own."""
    if split == "all":
        return source
    held_out = np.array([bool(key) and int(key[:8], 16) < HELD_OUT_SHARE * 2**32 for key in sample_keys(source)])
    indices = np.flatnonzero(held_out if split == "test" else ~held_out)
    if not len(indices):
        raise DataError(
            f"None of the {len(source)} images of {source.location} falls into the split '{split}' (one in five is held out, by "
            "content). Add images, or sort them into train/ and val/ folders."
        )
    return subset(source, indices)


class Subset:
    """Some samples of a source, in the order given."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self._source = source
        self._indices = np.asarray(indices, dtype=np.int64)
        self.location, self.classes = source.location, source.classes
        self.labels = None if source.labels is None else source.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes:
        """The encoded content of one image."""
        return self._source.read(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """What the underlying source says."""
        return self._source.describe(int(self._indices[index]))


def subset(source: ImageSource, indices: Sequence[int] | np.ndarray) -> ImageSource:
    """The samples of `source` at `indices`, in that order."""
    return Subset(source, indices)


class Concatenation:
    """Several sources one after another; labelled only if all of them are."""

    def __init__(self, parts: list[ImageSource], location: str) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.location = location
        self.classes = parts[0].classes
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = np.concatenate(labels) if len(labels) == len(parts) else None

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[ImageSource, int]:
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)

    def read(self, index: int) -> bytes:
        """The encoded content of one image."""
        part, within = self._find(index)
        return part.read(within)

    def describe(self, index: int) -> str:
        """What the part that holds the image says."""
        part, within = self._find(index)
        return part.describe(within)
