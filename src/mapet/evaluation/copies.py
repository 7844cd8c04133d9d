"""Images that occur more than once, known by their content: in the training part and in the test part, or under two labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mapet.data.source import KEY_LENGTH, ImageSource
from mapet.runtime.processes import gather_rows
from mapet.runtime.rank import this_process
from mapet.token_store.keys import is_content_key


@dataclass(frozen=True)
class KeyedImages:
    """Images known by their content.

    Args:
        keys: (n,) sample keys as bytes.
        labels: (n,) int64; None without labels.
    """

    keys: np.ndarray
    labels: np.ndarray | None


class SeenKeys:
    """The sample keys of a source's images, as far as they have come by.

    Args:
        source: The images.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._keys = np.zeros(len(source), f"S{KEY_LENGTH}")

    def record(self, indices: np.ndarray, keys: list[str]) -> None:
        """Adds the keys of readable images at these positions."""
        self._keys[indices] = keys

    def record_all(self, keys: list[str]) -> None:
        """Adds the keys of all images; those that are no content are left out."""
        self._keys[:] = [key if is_content_key(key) else "" for key in keys]

    def share(self) -> None:
        """Adds the keys that other processes have seen."""
        if this_process().world == 1:
            return
        mine = torch.from_numpy(self._keys.view(np.uint8))
        others = gather_rows(mine.view(1, -1))
        self._keys = others.amax(dim=0).numpy().view(self._keys.dtype)

    @property
    def images(self) -> KeyedImages:
        """Those whose content is known."""
        readable, labels = self._keys != b"", self._source.labels
        return KeyedImages(self._keys[readable], None if labels is None else labels[readable])


@dataclass(frozen=True)
class Copies:
    """Counts of images with the same bytes.

    Args:
        shared: Test images that are training images too.
        shared_otherwise: Those of them that have another label there.
        training: Training images that are copies of another training image.
        training_labels: Training images of which there is a copy under another label in the training part.
        test: Test images that are copies of another test image.
        test_labels: Test images of which there is a copy under another label in the test part.
    """

    shared: int = 0
    shared_otherwise: int = 0
    training: int = 0
    training_labels: int = 0
    test: int = 0
    test_labels: int = 0

    def describe(self) -> dict[str, int]:
        """As JSON."""
        return asdict(self)

    def line(self, test_images: int) -> str:
        """What of it should be known beside a figure; "" for nothing."""
        return copies_line(self.describe(), test_images)


def copies_line(counts: Mapping[str, Any], test_images: int) -> str:
    """One line about copies, as `Copies.describe` counts them (what a file has in their place is passed over); "" for none."""
    facts = {
        "shared": f"{{}} of the {test_images:,} test images are also training images, so that the figures are partly of memory",
        "shared_otherwise": "{} test images have another label in the training part",
        "training_labels": "{} training images also occur under another label",
        "test_labels": "{} test images also occur under another label",
        "test": "{} test images are copies of other test images",
    }
    positive = {name: count for name, count in counts.items() if isinstance(count, int) and count > 0}
    clauses = [words.format(f"{positive[name]:,}") for name, words in facts.items() if name in positive]
    return f"Same content: {'; '.join(clauses)}." if clauses else ""


def count_copies(train: KeyedImages, test: KeyedImages) -> Copies:
    """Counts the copies among the images of both parts that could be read."""
    shared = np.isin(test.keys, train.keys)
    otherwise = 0
    if train.labels is not None and test.labels is not None and shared.any():
        otherwise = _without_equal(test.keys[shared], test.labels[shared], train.keys, train.labels)
    return Copies(
        shared=int(shared.sum()),
        shared_otherwise=otherwise,
        training=len(train.keys) - len(np.unique(train.keys)),
        training_labels=_contradictory(train.keys, train.labels),
        test=len(test.keys) - len(np.unique(test.keys)),
        test_labels=_contradictory(test.keys, test.labels),
    )


def _contradictory(keys: np.ndarray, labels: np.ndarray | None) -> int:
    """Images whose content occurs under more than one label."""
    if labels is None or not len(keys):
        return 0
    contents = np.unique(keys, return_inverse=True)[1]
    pairs = np.unique(np.stack([contents, labels]), axis=1)
    return int((np.bincount(pairs[0])[contents] > 1).sum())


def _without_equal(keys: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray) -> int:
    """Images (keys, labels) of which `others` hold the content under another label."""
    labels_of: dict[bytes, set[int]] = {}
    shared = np.isin(others, keys)
    for key, label in zip(others[shared].tolist(), other_labels[shared].tolist(), strict=True):
        labels_of.setdefault(key, set()).add(label)
    return sum(labels_of[key] != {label} for key, label in zip(keys.tolist(), labels.tolist(), strict=True))
