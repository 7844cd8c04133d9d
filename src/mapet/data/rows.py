"""Images in the rows of tables of Hugging Face `datasets`: memory-mapped, so any size fits.

Columns are found by name: `image` or `img` (bytes, or the Hub's struct of bytes and path), and if present `label`, `fine_label` or
`cls` (class numbers or class names), `name` and `split`. Where none has such a name, the only one that the Hub's metadata call
Image or ClassLabel is taken. Every table has columns and class names of its own; labels of several tables are paired by name.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mapet.data.labels import (
    NAMED_NUMBERS,
    NUMBERS,
    UNKNOWN,
    Labels,
    joined_labels,
    labels_of_texts,
    number_labels,
    say_unused_columns,
)
from mapet.data.splits import SPLIT_COLUMNS
from mapet.data.tree import read_file
from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.printable import on_one_line

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
        label: Class numbers or names, if there are any.
        name: What the images are called, if they are.
        splits: Those that may name splits.
        classes: The class names of the numbers in `label` by the Hub's metadata, if it has any.
    """

    image: str
    label: str | None
    name: str | None
    splits: tuple[str, ...]
    classes: tuple[str, ...] | None

    @property
    def present(self) -> list[str]:
        """All of them."""
        return [column for column in (self.image, self.label, self.name, *self.splits) if column]


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        dataset: Its rows.
        columns: Which of its columns to use.
        title: What to call it in descriptions of its rows ("OWNER/NAME train").
        folder: Where the files lie that its rows name by their paths; None where they may lie anywhere.
    """

    dataset: Dataset
    columns: Columns
    title: str
    folder: Path | None

    def __len__(self) -> int:
        return self.dataset.num_rows

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """One column."""
        return self.dataset.data.column(name)

    def read(self, row: int) -> bytes:
        """The encoded image of one row."""
        image, path = self.column(self.columns.image)[row], None
        if not _has_field(image.type, "bytes"):
            content = image.as_py()
        else:
            content = image["bytes"].as_py() if image.is_valid else None
            path = _text(image["path"]) if image.is_valid and _has_field(image.type, "path") else None
        if content is not None:
            return content
        if not path:
            raise UnreadableImageError(f"the column '{self.columns.image}' holds no bytes in this row")
        return read_file(self.file(path))

    def file(self, path: str) -> Path:
        """The file that a row names in place of holding its bytes.

        Raises:
            UnreadableImageError: It lies outside the table's own folder.
        """
        if self.folder is None:
            return Path(path)
        try:
            place = (self.folder / path).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise UnreadableImageError(
                f"this row holds no bytes but the path '{path}', which cannot be followed: {error}"
            ) from error
        if not place.is_relative_to(self.folder.resolve()):
            raise UnreadableImageError(f"this row holds no bytes but the path '{path}', which leads out of {self.folder}")
        return place

    def describe(self, row: int) -> str:
        """Table, row counted from 0, and the row's name if there is one."""
        name = self._name(row)
        return on_one_line(f"{self.title} row {row}" + (f" ({name})" if name else ""))

    def _name(self, row: int) -> str | None:
        if self.columns.name:
            return _text(self.column(self.columns.name)[row])
        image = self.column(self.columns.image)[row]
        path = _text(image["path"]) if _has_field(image.type, "path") and image.is_valid else None
        return Path(path).name if path else None

    def check_bytes(self) -> None:
        """Refuses a table that holds no bytes at all, but paths of files that are not there."""
        images = self.column(self.columns.image)
        if not len(self) or any(len(content) > content.null_count for content in _fields(images, "bytes")):
            return
        reason = f"the column '{self.columns.image}' holds no bytes in any of its {len(self):,} rows"
        if path := next((_text(path) for paths in _fields(images, "path") for path in paths if path.is_valid), None):
            try:
                read_file(self.file(path))
            except UnreadableImageError as error:
                reason += f", only paths, and of the first, '{path}', {error}"
            else:
                return
        raise DataError(f"{self.title}: {reason}. Write the table with the bytes of its images, or put the files beside it.")

    def labels(self, listed: tuple[str, ...] | None) -> Labels | None:
        """The labels, None without such a column.

        Args:
            listed: Class names of numbers that the table itself does not name.
        """
        if self.columns.label is None:
            return None
        column = self.column(self.columns.label)
        names = self.columns.classes or listed
        if (texts := _texts(column)) is not None:
            return labels_of_texts(texts, names, self.describe)
        return Labels(self._numbers(column), names, NAMED_NUMBERS if names else NUMBERS)

    def split_columns(self) -> dict[str, list[str]]:
        """What the columns hold that may name splits, by their names in small letters."""
        return {name.lower(): self._words(self.column(name)) for name in self.columns.splits}

    def _words(self, column: pyarrow.ChunkedArray) -> list[str]:
        texts = _texts(column)
        values = column.to_pylist() if texts is None else texts
        return ["" if value is None else str(value).strip() for value in values]

    def _numbers(self, column: pyarrow.ChunkedArray) -> np.ndarray:
        """Class numbers as int64, whatever type of number the column has."""
        import pyarrow
        from pyarrow import types

        try:
            if types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if types.is_boolean(column.type):
                column = column.cast(pyarrow.int8())
            if types.is_floating(column.type):
                numbers = column.cast(pyarrow.float64()).to_numpy()
                column = pyarrow.chunked_array([pyarrow.array(numbers, from_pandas=True)])  # NaN is null
            return np.array(column.cast(pyarrow.int64()).fill_null(UNKNOWN).to_numpy(), dtype=np.int64)
        except pyarrow.ArrowException as error:
            raise DataError(f"The labels of {self.title} are no class numbers from 0 up: {error}.") from error


class RowImages:
    """The rows of tables, table after table.

    Args:
        tables: The tables.
        location: What the user gave, for messages.
        listed: Class names of numbers that the tables themselves do not name.
        classes: Class names to number labels by, such as those of the training images.

    Attributes:
        split_columns: What the columns hold that may name splits, row by row.

    Raises:
        DataError: Labels that do not fit, or columns that only some tables have.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        location: str,
        listed: tuple[str, ...] | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self._tables, self._rows = [*tables], None
        self._ends = [*accumulate(map(len, self._tables))]
        self.location = location
        self.classes: tuple[str, ...] | None = None
        self.labels: np.ndarray | None = None
        self.label_kind = ""
        self._refuse_different([table.columns.label for table in self._tables], lambda column: column is not None)
        self._refuse_different([", ".join(table.columns.splits) for table in self._tables], str.lower)
        for table in self._tables:
            table.check_bytes()
        if classes is None:
            first = self._tables[0]
            say_unused_columns(first.dataset.column_names, first.columns.label, first.title)
        table_labels = [labels for table in self._tables if (labels := table.labels(listed)) is not None]
        if table_labels:
            labels = joined_labels(table_labels, [table.title for table in self._tables])
            self.labels, self.classes = number_labels(labels, classes, self.describe)
            self.label_kind = labels.kind
        columns = [table.split_columns() for table in self._tables]
        self.split_columns = {name: [value for of_table in columns for value in of_table[name]] for name in columns[0]}

    def _refuse_different(self, columns: Sequence[str | None], by: Callable[[Any], Any]) -> None:
        """Refuses tables of which only some have a column."""
        has = {by(column): (table.title, column) for table, column in zip(self._tables, columns, strict=True)}
        if len(has) > 1:
            (one, first), (other, second), *_ = sorted(has.values(), key=lambda value: not value[1])
            raise DataError(
                f"{one} has the column '{first}' and {other} has {second or 'none'}. Write all files with the same columns, or "
                "give them separately."
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._rows is None else len(self._rows)

    def _find(self, index: int) -> tuple[Table, int]:
        row = index if self._rows is None else int(self._rows[index])
        table = bisect_right(self._ends, row)
        return self._tables[table], row - (self._ends[table - 1] if table else 0)

    def read(self, index: int) -> bytes:
        """The encoded image of one row."""
        table, row = self._find(index)
        return table.read(row)

    def describe(self, index: int) -> str:
        """Table, row counted from 0, and the row's name if there is one."""
        table, row = self._find(index)
        return table.describe(row)

    def only(self, rows: np.ndarray) -> RowImages:
        """Some of the rows."""
        part: Any = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        part.labels = None if self.labels is None else self.labels[rows]
        part.split_columns = {}
        return part


def find_columns(schema: pyarrow.Schema, title: str) -> Columns:
    """The columns to use, by their names or by the Hub's metadata in `schema`.

    Args:
        schema: The columns that there are.
        title: What to call the table in messages.

    Raises:
        DataError: No column holds encoded images, or the labels are neither numbers nor names.
    """
    from pyarrow import types

    features = _features(schema, title)
    image = _first_present(IMAGE_COLUMNS, schema) or _only_feature("Image", features)
    column_list = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if image is None:
        raise DataError(
            f"{title} has no image column: expected {' or '.join(IMAGE_COLUMNS)} (or one column of the Hub's type Image), "
            f"found {column_list}. Rename the column."
        )
    kind = schema.field(image).type
    if not (_has_field(kind, "bytes") or types.is_binary(kind) or types.is_large_binary(kind)):
        raise DataError(f"The column '{image}' of {title} must hold encoded images (JPEG or PNG bytes); found {column_list}.")
    label = _first_present(LABEL_COLUMNS, schema) or _only_feature("ClassLabel", features)
    if label and not _is_label(schema.field(label).type):
        raise DataError(f"The column '{label}' of {title} must hold class numbers from 0, or class names; found {column_list}.")
    names = getattr(features.get(label), "names", None) if label else None
    return Columns(image, label, _first_present(NAME_COLUMNS, schema), _split_columns(schema), tuple(names) if names else None)


def _split_columns(schema: pyarrow.Schema) -> tuple[str, ...]:
    """The columns that may name splits, in any case, in the order of the list."""
    present = {field.name.lower(): field.name for field in reversed([*schema]) if _is_label(field.type)}
    return tuple(present[name] for name in SPLIT_COLUMNS if name in present)


def _features(schema: pyarrow.Schema, title: str) -> dict[str, Any]:
    from datasets import Features

    try:
        return dict(Features.from_arrow_schema(schema))
    except Exception as error:  # whatever odd metadata cause in `datasets`
        raise DataError(
            f"The Hub's metadata in {title} cannot be read: {error}. Write it anew, or without the metadata."
        ) from error


def _is_label(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    return numbers or _is_text(kind) or types.is_null(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _texts(column: pyarrow.ChunkedArray) -> list[str] | None:
    """A column of texts, "" for null; None for a column of something else."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    return [value or "" for value in column.to_pylist()] if _is_text(kind) else None


def _first_present(candidates: Sequence[str], schema: pyarrow.Schema) -> str | None:
    return next((name for name in candidates if name in schema.names), None)


def _only_feature(kind: str, features: dict[str, Any]) -> str | None:
    """The column that is the only one of this type of the Hub's."""
    columns = [name for name, feature in features.items() if type(feature).__name__ == kind]
    return columns[0] if len(columns) == 1 else None


def _has_field(kind: pyarrow.DataType, name: str) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and kind.get_field_index(name) >= 0


def _text(value: Any) -> str | None:
    """A scalar that holds a name; bytes that are no UTF-8, as in a damaged file, become question marks."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return value.as_buffer().to_pybytes().decode(errors="replace")


def _fields(images: pyarrow.ChunkedArray, name: str) -> list[pyarrow.Array]:
    """A field of every chunk of structs; what a column of bytes holds is its field "bytes"."""
    if not _has_field(images.type, name):
        return images.chunks if name == "bytes" else []
    return [chunk.field(name) for chunk in images.chunks]


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
