"""Parquet files with one encoded image per row, read through Hugging Face `datasets`: memory-mapped, so any size fits.

Columns are found by name: `image` or `img` (bytes, or the Hub's struct of bytes and path), and if present `label` or `fine_label`
(integers) and `name`. Class names come from the Hub's own metadata, or from labels.txt beside the files (line n = class n).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.errors import DataError, StorageError, UnreadableImageError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
NAME_COLUMNS = ("name",)


class ParquetImages:
    """The rows of Parquet files, file after file.

    Args:
        files: Paths, in the order of the rows.
        location: What the user gave, for messages; the first file by default.

    Raises:
        DataError: A damaged or empty file, no image column, or labels that do not fit.
    """

    def __init__(self, files: Sequence[Path], location: str | None = None) -> None:
        self._files = [Path(file) for file in files]
        self.location = location or str(files[0])
        schema, rows = _inspect(self._files)
        self._ends = np.array(list(accumulate(rows)))
        self._image = _image_column(schema, self._files[0])
        self._label = _first_present(LABEL_COLUMNS, schema)
        self._name = _first_present(NAME_COLUMNS, schema)
        self._dataset = _load(self._files, [column for column in (self._image, self._label, self._name) if column])
        self.classes = self._class_names()
        self.labels = self._read_labels()

    def _class_names(self) -> tuple[str, ...] | None:
        names = getattr(self._dataset.features[self._label], "names", None) if self._label else None
        listing = self._files[0].parent / "labels.txt"
        if self._label and not names and listing.is_file():
            names = [" ".join(line.split()) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        return tuple(names) if names else None

    def _read_labels(self) -> np.ndarray | None:
        if self._label is None:
            return None
        column = self._dataset.data.column(self._label)
        labels = np.array(column.fill_null(-1).to_numpy(), dtype=np.int64)
        if (labels < 0).all():
            return None
        allowed = len(self.classes) if self.classes else None
        wrong = np.flatnonzero((labels < 0) | (False if allowed is None else labels >= allowed))
        if len(wrong):
            limit = "0 or more" if allowed is None else f"0 to {allowed - 1}, as there are {allowed} class names"
            raise DataError(f"{self.describe(int(wrong[0]))} has the label {labels[wrong[0]]}; allowed: {limit}.")
        return labels

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> bytes:
        """The encoded image of one row."""
        value = self._dataset.data.column(self._image)[index].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None:
            raise UnreadableImageError(f"the column '{self._image}' holds no bytes in this row")
        return content

    def describe(self, index: int) -> str:
        """File, row within the file counted from 0, and the row's name if there is one."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[file - 1]) if file else 0)
        name = self._dataset.data.column(self._name)[index].as_py() if self._name else None
        return f"{self._files[file].name} row {row}" + (f" ({name})" if name else "")


def split_files(folder: Path) -> list[list[Path]]:
    """The Parquet files of a folder by split: train, val, test; empty if they are not named after train and another split."""
    files = sorted(folder.glob("*.parquet"))
    groups: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    others = []
    for file in files:
        match = re.match(r"(train|val|test)(?![a-z])|(valid)(?:ation)?(?![a-z])", file.stem.lower())
        groups[("val" if match[2] else match[1])].append(file) if match else others.append(file)
    present = [group for group in groups.values() if group]
    if len(present) < 2 or not groups["train"]:
        return []
    if others:
        raise DataError(
            f"{folder} holds {others[0].name} beside files named after splits (train, val, validation, test). Rename it, move it "
            "away, or give one file."
        )
    return present


def _inspect(files: Sequence[Path]) -> tuple[pyarrow.Schema, list[int]]:
    """The first file's columns and every file's row count."""
    import pyarrow
    from pyarrow import parquet

    footers = []
    for file in files:
        try:
            footers.append(parquet.read_metadata(file))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is no readable Parquet file (damaged, or cut short): {error}") from error
    rows = [footer.num_rows for footer in footers]
    if not sum(rows):
        raise DataError(f"{files[0]} holds no rows.")
    return footers[0].schema.to_arrow_schema(), rows


def _first_present(candidates: Sequence[str], schema: pyarrow.Schema) -> str | None:
    return next((name for name in candidates if name in schema.names), None)


def _image_column(schema: pyarrow.Schema, file: Path) -> str:
    import pyarrow

    column = _first_present(IMAGE_COLUMNS, schema)
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if column is None:
        raise DataError(f"{file} has no image column: looked for {' or '.join(IMAGE_COLUMNS)}, found {found}. Rename the column.")
    kind = schema.field(column).type
    struct_of_bytes = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (struct_of_bytes or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise DataError(f"The column '{column}' of {file} must hold encoded images (JPEG or PNG bytes); found {found}.")
    label = _first_present(LABEL_COLUMNS, schema)
    if label and not pyarrow.types.is_integer(schema.field(label).type):
        raise DataError(f"The column '{label}' of {file} must hold integers (class numbers from 0); found {found}.")
    return column


def _load(files: Sequence[Path], columns: list[str]) -> Dataset:
    from datasets import Dataset, config
    from datasets.exceptions import DatasetGenerationError

    with _silent_datasets():
        try:
            loaded = Dataset.from_parquet([str(file) for file in files], columns=columns)
        except DatasetGenerationError as error:
            reason = error.__cause__ or error
            raise DataError(f"The Parquet files of {files[0].parent} cannot be read together: {reason}") from error
        except OSError as error:
            raise StorageError(
                f"Cannot unpack {files[0]} into the cache {config.HF_DATASETS_CACHE}: {error.strerror or error}. Make room there, "
                "or set HF_DATASETS_CACHE to another folder."
            ) from error
    assert isinstance(loaded, Dataset)
    return loaded


@contextmanager
def _silent_datasets() -> Iterator[None]:
    import datasets

    hidden_before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden_before:
            datasets.enable_progress_bars()
