"""Images in the rows of a table of Hugging Face `datasets`: memory-mapped, so any size fits.

Columns are found by name: `image` or `img` (bytes, or the Hub's struct of bytes and path), and if present `label`, `fine_label` or
`cls` (integers) and `name`. Where none has such a name, the only one that the Hub's metadata call Image or ClassLabel is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.data.folder import read_file
from mapet.data.labels import checked_labels
from mapet.errors import DataError, UnreadableImageError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "cls")
NAME_COLUMNS = ("name",)


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    Args:
        image: Encoded images.
        label: Class numbers, if there are any.
        name: What the images are called, if they are.
    """

    image: str
    label: str | None
    name: str | None

    @property
    def present(self) -> list[str]:
        """All of them."""
        return [column for column in (self.image, self.label, self.name) if column]


class RowImages:
    """The rows of a table.

    Args:
        dataset: The table.
        columns: Which of its columns to use.
        title: What to call the table in descriptions of its rows ("OWNER/NAME train").
        location: What the user gave, for messages.
        classes: Class names, where the table itself names none.
        follow_paths: Whether a row without bytes is read from the file that it names.

    Raises:
        DataError: Labels that do not fit.
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Columns,
        title: str,
        location: str,
        classes: tuple[str, ...] | None = None,
        follow_paths: bool = False,
    ) -> None:
        self._dataset, self._columns, self._title, self._follow_paths = dataset, columns, title, follow_paths
        self.location = location
        names = getattr(dataset.features[columns.label], "names", None) if columns.label else None
        self.classes: tuple[str, ...] | None = (tuple(names) if names else classes) if columns.label else None
        self.labels = self._read_labels()

    def _read_labels(self) -> np.ndarray | None:
        if self._columns.label is None:
            return None
        column = self._dataset.data.column(self._columns.label)
        return checked_labels(np.array(column.fill_null(-1).to_numpy(), dtype=np.int64), self.classes, self.describe)

    def __len__(self) -> int:
        return self._dataset.num_rows

    def read(self, index: int) -> bytes:
        """The encoded image of one row."""
        content, path = self._image(index).as_py(), None
        if isinstance(content, dict):
            content, path = content["bytes"], content.get("path")
        if content is None and path and self._follow_paths:
            return read_file(Path(path))
        if content is None:
            raise UnreadableImageError(f"the column '{self._columns.image}' holds no bytes in this row")
        return content

    def describe(self, index: int) -> str:
        """Table, row counted from 0, and the row's name if there is one."""
        name = self._name(index)
        return self._place(index) + (f" ({name})" if name else "")

    def _place(self, index: int) -> str:
        return f"{self._title} row {index}"

    def _name(self, index: int) -> str | None:
        if self._columns.name:
            return self._dataset.data.column(self._columns.name)[index].as_py()
        image = self._image(index)
        path = image["path"].as_py() if _has_field(image.type, "path") and image.is_valid else None
        return Path(path).name if path else None

    def _image(self, index: int) -> pyarrow.Scalar:
        return self._dataset.data.column(self._columns.image)[index]


def find_columns(schema: pyarrow.Schema, title: str) -> Columns:
    """The columns to use, by their names or by the Hub's metadata in `schema`.

    Args:
        schema: The columns that there are.
        title: What to call the table in messages.

    Raises:
        DataError: No column holds encoded images, or the labels are no integers.
    """
    from pyarrow import types

    image = _first_present(IMAGE_COLUMNS, schema) or _only_feature("Image", schema)
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if image is None:
        raise DataError(
            f"{title} has no image column: looked for {' or '.join(IMAGE_COLUMNS)} (or one column of the Hub's type Image), "
            f"found {found}. Rename the column."
        )
    kind = schema.field(image).type
    if not (_has_field(kind, "bytes") or types.is_binary(kind) or types.is_large_binary(kind)):
        raise DataError(f"The column '{image}' of {title} must hold encoded images (JPEG or PNG bytes); found {found}.")
    label = _first_present(LABEL_COLUMNS, schema) or _only_feature("ClassLabel", schema)
    if label and not types.is_integer(schema.field(label).type):
        raise DataError(
            f"The column '{label}' of {title} must hold integers (class numbers from 0); found {found}. In Python, "
            f"`dataset.class_encode_column('{label}').save_to_disk(FOLDER)` writes a copy that does; then give FOLDER."
        )
    return Columns(image, label, _first_present(NAME_COLUMNS, schema))


def _first_present(candidates: Sequence[str], schema: pyarrow.Schema) -> str | None:
    return next((name for name in candidates if name in schema.names), None)


def _only_feature(kind: str, schema: pyarrow.Schema) -> str | None:
    """The column that is the only one of this type of the Hub's."""
    from datasets import Features

    named = [name for name, feature in Features.from_arrow_schema(schema).items() if type(feature).__name__ == kind]
    return named[0] if len(named) == 1 else None


def _has_field(kind: pyarrow.DataType, name: str) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and kind.get_field_index(name) >= 0


@contextmanager
def silent_datasets() -> Iterator[None]:
    """No progress bars of `datasets`."""
    import datasets

    hidden_before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden_before:
            datasets.enable_progress_bars()
