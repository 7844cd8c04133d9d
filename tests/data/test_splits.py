from pathlib import Path

import pytest

from mapet.data.splits import split_files, split_of
from mapet.errors import DataError


def stems(files: list[Path]) -> list[list[str]]:
    return [[file.stem for file in group] for group in split_files(files).values()]


def test_files_named_after_splits():
    names = ("train-0", "train-1", "test", "validation-0")
    files = [Path("data") / f"{name}.parquet" for name in names]
    assert stems(files) == [["train-0", "train-1"], ["validation-0"], ["test"]]
    with pytest.raises(DataError, match=r"data holds extra\.parquet beside files named after splits"):
        split_files([*files, Path("data/extra.parquet")])


def test_files_not_named_after_splits():
    assert stems([Path(f"{name}.tar") for name in ("train-0", "contest", "tester")]) == []
    assert stems([Path("train-0.tar"), Path("train-1.tar")]) == []
    assert stems([Path("val.tar"), Path("test.tar")]) == []


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAIN_07", "train"),
        ("imagenet1k-validation-03", "val"),
        ("valid-0", "val"),
        ("x_val", "val"),
        ("test-00000-of-00001", "test"),
        ("trainval", "train"),
        ("contest", None),
        ("validity", None),
        ("2train", None),
        ("", None),
    ],
)
def test_a_split_is_a_word_of_its_own(name, split):
    assert split_of(name) == split
