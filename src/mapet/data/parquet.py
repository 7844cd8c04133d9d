"""Parquet files with one encoded image per row, read through Hugging Face `datasets`; for the columns see `rows`.

Class names come from the Hub's own metadata, or from labels.txt or classes.txt beside the files (line n = class n).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.data.labels import listed_classes
from mapet.data.rows import RowImages, find_columns, silent_datasets
from mapet.errors import DataError, StorageError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


class ParquetImages(RowImages):
    """The rows of Parquet files, file after file.

    Args:
        files: Paths, in the order of the rows.
        location: What the user gave, for messages; the first file by default.

    Raises:
        DataError: A damaged or empty file, no image column, or labels that do not fit.
    """

    def __init__(self, files: Sequence[Path], location: str | None = None) -> None:
        self._files = [Path(file) for file in files]
        schema, rows = _inspect(self._files)
        self._ends = np.array(list(accumulate(rows)))
        first = self._files[0]
        columns = find_columns(schema, str(first))
        dataset = _load(self._files, columns.present)
        super().__init__(dataset, columns, first.name, location or str(first), listed_classes(first.parent))

    def _place(self, index: int) -> str:
        """File, and row within the file counted from 0."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[file - 1]) if file else 0)
        return f"{self._files[file].name} row {row}"


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


def _load(files: Sequence[Path], columns: list[str]) -> Dataset:
    from datasets import Dataset, config
    from datasets.exceptions import DatasetGenerationError

    with silent_datasets():
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
