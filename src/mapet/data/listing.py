"""A CSV file that lists images: a column `path`, `file` or `image`, and if wanted `label` (class numbers, or class names).

Paths are relative to the CSV file. Numbered classes have their names from labels.txt or classes.txt beside it.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mapet.data.folder import read_file
from mapet.data.labels import listed_classes, number_labels
from mapet.errors import DataError

PATH_COLUMNS = ("path", "file", "image")
LABEL_COLUMN = "label"


class ListedImages:
    """The image files that a CSV file names, in its order.

    Args:
        listing: The CSV file.
        location: What the user gave, for messages; the file by default.
        classes: Names to number labels by, such as those of the training images; by default those of labels.txt, or its own.

    Raises:
        DataError: No readable CSV, no column of paths, a row without a path, or labels that do not fit.
    """

    def __init__(self, listing: Path, location: str | None = None, classes: tuple[str, ...] | None = None) -> None:
        self._folder = listing.parent
        self.location = location or str(listing)
        columns = _read_columns(listing)
        path = next((name for name in PATH_COLUMNS if name in columns), None)
        if path is None:
            raise DataError(
                f"{listing} has no column of paths: its first line must name one of {', '.join(PATH_COLUMNS)}, comma-separated; "
                f"found {', '.join(columns) or 'nothing'}."
            )
        self._files = columns[path]
        if "" in self._files or not self._files:
            row = f"row {self._files.index('') + 1} has no {path}" if self._files else "it has no rows"
            raise DataError(f"{listing} must name an image file in every row below the first line; {row}.")
        self.classes = classes or listed_classes(self._folder) if LABEL_COLUMN in columns else None
        self.labels: np.ndarray | None = None
        if LABEL_COLUMN in columns:
            self.labels, self.classes = number_labels(columns[LABEL_COLUMN], self.classes, self.describe)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        """The content of one file."""
        return read_file(self._folder / self._files[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self._folder / self._files[index])


def _read_columns(listing: Path) -> dict[str, list[str]]:
    """Every column by its name, without blanks around; cells that a short row lacks are ""."""
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            names = [*(reader.fieldnames or ())]
            rows = [*reader]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{listing} cannot be read as CSV in UTF-8: {error}. Save it as comma-separated UTF-8 text.") from error
    return {name.strip(): [row[name].strip() for row in rows] for name in names}
