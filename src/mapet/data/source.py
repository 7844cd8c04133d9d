"""What a source of images is, the keys of its samples, parts of sources, and several sources as one.

A sample is known by its content (`sample_key`), never by its name or position.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Protocol

import numpy as np

from mapet.data.labels import renumber
from mapet.errors import UnreadableImageError
from mapet.runtime.progress import progress

HASHING_THREADS = 8
SILENT_SECONDS = 2.0
KEY_LENGTH = 32


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
        """The encoded content of one image; raises `UnreadableImageError` where there is none to be had.

        Several threads and processes read at the same time.
        """
        ...

    def describe(self, index: int) -> str:
        """Shown to the user: a path, or "train.parquet row 17 (name)"."""
        ...


def sample_key(content: bytes) -> str:
    """The identity of a sample, `KEY_LENGTH` hex digits: a renamed file keeps it, a changed pixel changes it."""
    return hashlib.blake2b(content, digest_size=KEY_LENGTH // 2).hexdigest()


def sample_keys(source: ImageSource) -> list[str]:
    """The key of every sample, in order; "" where the file itself cannot be read.

    Every image is read, by several threads, unless the source already has its keys (`with_keys`, `hold_out`).
    """
    if isinstance(source, Subset) and source.keys is not None:
        return source.keys.astype("U").tolist()
    images = len(source)
    share = max(1, min(64, images // (8 * HASHING_THREADS)))  # images a task: large files are few, small ones many

    def keys_from(first: int) -> list[str]:
        return [_key(source, index) for index in range(first, min(first + share, images))]

    keys: list[str] = []
    with progress("Reading sample keys", images, after=SILENT_SECONDS) as bar, ThreadPoolExecutor(HASHING_THREADS) as pool:
        for chunk in pool.map(keys_from, range(0, images, share)):
            keys += chunk
            bar.advance(len(chunk))
    return keys


def _key(source: ImageSource, index: int) -> str:
    try:
        return sample_key(source.read(index))
    except UnreadableImageError:
        return ""


class Subset:
    """Some samples of a source, in the order given; a subset of a subset refers to the source of both.

    It has the keys of its samples if they are given, or if the source is a subset with keys.

    Attributes:
        whole: The source, which is no subset.
        keys: (n,) bytes, or None.
    """

    def __init__(
        self, source: ImageSource, indices: Sequence[int] | np.ndarray, keys: Sequence[str] | np.ndarray | None = None
    ) -> None:
        indices = np.asarray(indices, dtype=np.int64)
        self.location, self.classes = source.location, source.classes
        self.labels = None if source.labels is None else source.labels[indices]
        if isinstance(source, Subset):
            if keys is None and source.keys is not None:
                keys = source.keys[indices]
            source, indices = source.whole, source._indices[indices]
        self.whole: ImageSource = source
        self._indices: np.ndarray = indices
        self.keys = None if keys is None else np.asarray(keys, f"S{KEY_LENGTH}")

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes:
        """The encoded content of one image."""
        return self.whole.read(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """The description of the underlying source."""
        return self.whole.describe(int(self._indices[index]))


def subset(source: ImageSource, indices: Sequence[int] | np.ndarray) -> ImageSource:
    """The samples of `source` at `indices`, in that order."""
    return Subset(source, indices)


def with_keys(source: ImageSource) -> ImageSource:
    """`source`, its keys known: every image is read now, where it was not before, and not again for its key."""
    if isinstance(source, Subset) and source.keys is not None:
        return source
    return Subset(source, range(len(source)), sample_keys(source))


class Concatenation:
    """Several sources one after another; labelled only if all of them are, and numbered by the class names of the first."""

    def __init__(self, parts: list[ImageSource], location: str) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.location = location
        self.classes = parts[0].classes
        labels = [renumber(part.labels, part.classes, self.classes, part.describe) for part in parts if part.labels is not None]
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
        """The description of the part that holds the image."""
        part, within = self._find(index)
        return part.describe(within)
