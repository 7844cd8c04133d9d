"""Parquet files with one encoded image per row; for the columns see `rows`.

A row of a Parquet file is not read from its place: its whole row group would have to be unpacked. So every file is unpacked once,
into an Arrow file in the cache of `datasets`, which is mapped into memory. The Arrow file is named after the SHA-256 of the Parquet
file's bytes. That hash is kept too, and believed for the same inode with the same size and times: among them the time at which an
inode was changed (ctime), which programs cannot set, unlike the time that files show.

Class names come from the Hub's own metadata in every file, or from labels.txt or classes.txt beside the files (line n = class n).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.data.labels import listed_classes
from mapet.data.rows import Columns, RowImages, Table, find_columns
from mapet.errors import DataError, StorageError
from mapet.runtime.files import atomic_file, remedy
from mapet.runtime.progress import ProgressBar, progress
from mapet.runtime.regular import open_regular, read_text

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from pyarrow.parquet import ParquetFile

_VERSION = 1
_BATCH_ROWS = 128
_MIB, _CHUNK = 2**20, 2**22
_SILENT_SECONDS, _HASHING_THREADS = 2.0, 8
# A file that changed so lately might change again within the resolution of the clock.
_SETTLED_SECONDS = 2.0


class ParquetImages(RowImages):
    """The rows of Parquet files, file after file.

    Args:
        files: Paths, in the order of the rows.
        location: What the user gave, for messages; the first file by default.
        classes: Class names to number labels by, such as those of the training images.

    Raises:
        DataError: A damaged or empty file, no image column, or labels that do not fit.
        StorageError: There is no room to unpack them.
    """

    def __init__(self, files: Sequence[Path], location: str | None = None, classes: tuple[str, ...] | None = None) -> None:
        paths = [Path(file) for file in files]
        columns = {path: file_columns for path in paths if (file_columns := _columns(path)) is not None}
        if not columns:
            raise DataError(f"{paths[0]} holds no rows.")
        unpacked = _unpack([*columns], [*columns.values()])
        tables = [Table(rows, columns[path], path.name, path.parent) for path, rows in zip(columns, unpacked, strict=True)]
        super().__init__(tables, location or str(paths[0]), listed_classes(paths[0].parent), classes)


def _columns(path: Path) -> Columns | None:
    """The columns of a file that are used; None for a file without rows."""
    with _readable(path) as file:
        return find_columns(file.schema_arrow, str(path)) if file.metadata.num_rows else None


def _readable(path: Path) -> ParquetFile:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        open_regular(path).close()
        return ParquetFile(path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Parquet file (damaged, or cut short): {error}") from error


def _unpack(files: Sequence[Path], columns: Sequence[Columns]) -> list[Dataset]:
    """The rows of `files`, from the cache where it holds what is in them."""
    from datasets import config

    cache = Path(config.HF_DATASETS_CACHE) / "mapet-parquet"
    before = [*map(_stamp, files)]
    try:
        targets = [
            cache / f"{digest}-{hashlib.sha256(repr((_VERSION, of_file.present)).encode()).hexdigest()[:8]}.arrow"
            for digest, of_file in zip(_digests(files, cache), columns, strict=True)
        ]
        with progress("Unpacking Parquet files", len(files), after=_SILENT_SECONDS) as bar:
            for file, of_file, target, stamp in zip(files, columns, targets, before, strict=True):
                if not target.is_file():
                    _write_arrow(file, of_file.present, target, stamp)
                bar.advance()
    except StorageError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else None
        reason = (cause and cause.strerror) or error
        raise StorageError(
            f"Cannot unpack {files[0]} into the cache {config.HF_DATASETS_CACHE}: {reason}. To go on, "
            f"{remedy(cause)}, or set HF_DATASETS_CACHE to another folder."
        ) from error
    return [*map(_opened, targets)]


def _opened(target: Path) -> Dataset:
    import pyarrow
    from datasets import Dataset

    try:
        return Dataset.from_file(str(target))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{target}, which was unpacked before, is damaged: {error}. Remove it; it is made again.") from error


def _write_arrow(path: Path, columns: list[str], target: Path, stamp: tuple[int, ...]) -> None:
    """Unpacks a file; `stamp` is what `_stamp` gave when it was hashed."""
    import pyarrow

    file = _readable(path)
    schema = pyarrow.schema([file.schema_arrow.field(name) for name in columns])  # without metadata: those were read already
    with (
        file,
        atomic_file(target) as partial,
        pyarrow.OSFile(str(partial), "wb") as sink,
        pyarrow.ipc.new_stream(sink, schema) as arrow,
    ):
        for batch in _batches(file, path, columns):
            arrow.write_batch(batch.select(columns).cast(schema))
        if _stamp(path) != stamp:
            raise DataError(f"{path} was changed while it was read. Run the command again when nothing writes to it any more.")


def _batches(file: ParquetFile, path: Path, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    try:
        yield from file.iter_batches(_BATCH_ROWS, columns=columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Parquet file (damaged inside): {error}") from error


def _digests(files: Sequence[Path], cache: Path) -> list[str]:
    """The SHA-256 of every file, in hex."""
    with (
        progress("Reading Parquet files (MiB)", sum(file.stat().st_size // _MIB for file in files), after=_SILENT_SECONDS) as bar,
        ThreadPoolExecutor(_HASHING_THREADS) as pool,
    ):
        return [*pool.map(lambda file: _digest(file, cache, bar), files)]


def _digest(path: Path, cache: Path, bar: ProgressBar) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            cache_file = cache / "hashes" / hashlib.sha256(repr(_facts(status)).encode()).hexdigest()[:32]
            if cache_file.is_file():
                return read_text(cache_file)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                bar.advance((size + len(chunk)) // _MIB - size // _MIB)
                size += len(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if time.time() - status.st_ctime > _SETTLED_SECONDS:
        with suppress(StorageError), atomic_file(cache_file) as partial:  # a cache that others filled may be read-only
            partial.write_text(digest.hexdigest(), encoding="utf-8")
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        return _facts(path.stat())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _facts(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written again."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
