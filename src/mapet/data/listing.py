"""A CSV file that lists images: a column `path`, `file` or `image`, and perhaps `label` (class numbers or names) and `split`, or
another one of `SPLIT_COLUMNS`.

Paths are relative to the CSV file. Numbered classes have their names from labels.txt or classes.txt beside it. Names of columns
count in any case.
"""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path

import numpy as np

from mapet.data.labels import labels_of_texts, listed_classes, number_labels, say_unused_columns
from mapet.data.splits import SPLIT_COLUMNS
from mapet.data.tree import MOST_BYTES, read_file
from mapet.errors import DataError
from mapet.runtime.printable import on_one_line
from mapet.runtime.regular import read_regular

PATH_COLUMNS = ("path", "file", "image")
LABEL_COLUMN = "label"


class ListedImages:
    """The image files that a CSV file names, in its order.

    Args:
        listing: The CSV file.
        location: What the user gave, for messages; the file by default.
        classes: Names to number labels by, such as those of the training images; by default those of labels.txt, or its own.

    Attributes:
        split_columns: What the columns hold that may name splits, row by row.

    Raises:
        DataError: No readable CSV, no column of paths, a row without a path or with too many cells, or labels that do not fit.
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
        self.split_columns = {name: columns[name] for name in SPLIT_COLUMNS if name in columns}
        self.classes: tuple[str, ...] | None = None
        self.labels: np.ndarray | None = None
        self.label_kind = ""
        if classes is None:
            say_unused_columns([*columns], LABEL_COLUMN if LABEL_COLUMN in columns else None, str(listing))
        if LABEL_COLUMN in columns:
            labels = labels_of_texts(columns[LABEL_COLUMN], listed_classes(self._folder), self.describe)
            self.labels, self.classes = number_labels(labels, classes, self.describe)
            self.label_kind = labels.kind

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        """The content of one file."""
        return read_file(self._folder / self._files[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return on_one_line(self._folder / self._files[index])

    def only(self, rows: np.ndarray) -> ListedImages:
        """Some of the rows."""
        part = copy.copy(self)
        part._files = [self._files[row] for row in rows]
        part.labels = None if self.labels is None else self.labels[rows]
        part.split_columns = {}
        return part


def _read_columns(listing: Path) -> dict[str, list[str]]:
    """Every column by its name in small letters, without blanks around; cells that a short row lacks are ""."""
    try:
        text = read_regular(listing, MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = [name.lower() for name in names]
        rows = [*reader]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{listing} cannot be read as CSV in UTF-8: {error}. Save it as comma-separated UTF-8 text.") from error
    columns = [name.lower() for name in names]
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise DataError(f"{listing} has two columns called '{twice}'. Rename one of them.")
    if long := next((number for number, row in enumerate(rows, 1) if None in row), None):
        extra = rows[long - 1][None]  # pyright: ignore[reportArgumentType]
        raise DataError(
            f"Row {long} of {listing} has {len(columns) + len(extra)} cells, and the first line names {len(columns)} columns. Put "
            "cells that hold commas in double quotes."
        )
    return {name: [row[name].strip() for row in rows] for name in columns}
