"""R2: other columns than `split` that name splits, in CSV and Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mapet.data.sources import open_source, open_splits
from mapet.data.splits import split_rows
from mapet.errors import DataError
from tests.data.images import png


def in_table(folder: Path, kind: str, column: str, values: list) -> Path:
    """Eight images with labels and one more column."""
    folder.mkdir()
    rows = [{"image": png(number), "label": ("cat", "dog")[number % 2], column: value} for number, value in enumerate(values)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
        return folder / "a.parquet"
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(row["image"])
    lines = [f"{number}.png,{row['label']},{row[column]}" for number, row in enumerate(rows)]
    (folder / "a.csv").write_text("\n".join([f"path,label,{column}", *lines]))
    return folder / "a.csv"


NAMES, BOOLEANS = ["train"] * 5 + ["valid"] * 3, [False] * 5 + [True] * 3
COLUMNS = [*((column, NAMES) for column in ("split", "set", "Subset", "partition", "fold", "phase")), ("is_valid", BOOLEANS)]
COLUMNS += [("is_test", BOOLEANS), ("is_train", [not value for value in BOOLEANS]), ("is_valid", [*map(int, BOOLEANS)])]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("column", "values"), COLUMNS, ids=str)
def test_other_columns_that_name_splits(tmp_path: Path, kind: str, column: str, values: list) -> None:
    """R2."""
    train, test = open_splits(in_table(tmp_path / "x", kind, column, values))
    assert sorted(map(train.read, range(len(train)))) == sorted(map(png, range(5)))
    assert sorted(map(test.read, range(len(test)))) == sorted(map(png, range(5, 8)))
    assert train.labels is not None
    assert (train.classes, len(train.labels)) == (("cat", "dog"), 5)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("column", "values"), [("set", [*"ABABABAB"]), ("fold", [*range(8)]), ("is_valid", [*range(8)])], ids=str)
def test_a_column_that_names_no_splits_is_named(
    tmp_path: Path, kind: str, column: str, values: list, capsys: pytest.CaptureFixture[str]
) -> None:
    """R2."""
    assert len(open_source(in_table(tmp_path / "x", kind, column, values), "all")) == 8
    assert f"the column '{column}' is not used (first value: {values[0]})" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_names_splits_in_some_rows_is_refused(tmp_path: Path, kind: str) -> None:
    """R2."""
    with pytest.raises(DataError, match="has the split 'tset'; the column 'subset' may hold"):
        open_source(in_table(tmp_path / "x", kind, "subset", [*NAMES[:7], "tset"]), "all")


def test_several_columns_that_name_splits() -> None:
    """R2: `split` goes first; of others it is not clear which is meant."""
    columns = {"split": ["train", "val"], "set": ["val", "train"]}
    assert {split: rows.tolist() for split, rows in split_rows(columns, str, "x").items()} == {"train": [0], "val": [1]}
    with pytest.raises(DataError, match="x: the columns set and is_valid both name splits"):
        split_rows({"set": ["val", "train"], "is_valid": ["0", "1"]}, str, "x")
