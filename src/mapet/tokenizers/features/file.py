"""Features on disk: one .npy file that only grows, and beside it how far it has come, so that `kill -9` costs seconds.

FILE.npy    (n, dim) float16; its header has 0 rows until it is finished
FILE.json   the job, the batches that are in it, their rows, and the images that could not be read
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from mapet.errors import MapetError, StorageError
from mapet.runtime.files import storage_errors, write_json
from mapet.runtime.json_files import read_json

# What a killed process repeats at most.
SECONDS_BETWEEN_STATES = 30.0


@dataclass
class Written:
    """How far a file has come.

    Args:
        batches: Batches whose features are in the file.
        rows: Feature vectors.
        images: Images that could be read.
        unreadable: Fields of an `UnreadableImage` each.
        finished: Whether that is all.
    """

    batches: int = 0
    rows: int = 0
    images: int = 0
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


class FeatureFile:
    """Writes a file of features, from where an earlier writer of the same job stopped.

    Args:
        path: The .npy file.
        dim: Length of a feature vector.
        job: A digest of all that the features depend on; what another job left is written over.
    """

    def __init__(self, path: Path, dim: int, job: str) -> None:
        self.path, self._dim, self._job = path, dim, job
        self._state = path.with_suffix(".json")
        self.written = self._read_record()

    def __enter__(self) -> FeatureFile:
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("r+b" if self.written.batches else "w+b")
            self._file.write(self._header(0))
            self._file.truncate(self._end())
            self._file.seek(0, os.SEEK_END)
        self._saved = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None or not issubclass(kind, StorageError):
                self._save()
        finally:
            self._file.close()

    def add(self, features: Tensor, images: int, unreadable: list[dict[str, Any]]) -> None:
        """Appends the features (n, dim) float16 of one batch.

        Raises:
            StorageError: The disk is full; what was there before stays.
        """
        with storage_errors(self.path):
            self._file.write(features.numpy().tobytes())
        self.written.batches += 1
        self.written.rows += len(features)
        self.written.images += images
        self.written.unreadable += unreadable
        if time.monotonic() - self._saved >= SECONDS_BETWEEN_STATES:
            self._save()

    def finish(self) -> None:
        """Completes the header: from now on it is a file that numpy reads."""
        self.written.finished = True
        with storage_errors(self.path):
            self._file.seek(0)
            self._file.write(self._header(self.written.rows))

    def _save(self) -> None:
        """First the features, then the word that they are there."""
        with storage_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        write_json(self._state, {"job": self._job, **asdict(self.written)})
        self._saved = time.monotonic()

    def _read_record(self) -> Written:
        """What an earlier writer of the same job is known to have left."""
        try:
            record = read_json(self._state)
            written = Written(**record) if record.pop("job") == self._job else Written()
            whole = self.path.stat().st_size >= self._end(written)
        except (OSError, MapetError, KeyError, TypeError, AttributeError):
            return Written()
        return written if whole else Written()

    def _end(self, written: Written | None = None) -> int:
        """Where the features end."""
        return len(self._header(0)) + (written or self.written).rows * self._dim * 2

    def _header(self, rows: int) -> bytes:
        """Of the same length for any number of rows: numpy leaves room for 20 digits."""
        buffer = BytesIO()
        description = {"descr": "<f2", "fortran_order": False, "shape": (rows, self._dim)}
        np.lib.format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()
