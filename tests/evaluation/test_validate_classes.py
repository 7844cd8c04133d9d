"""Which output stands for which class, and on which images is validated."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapet.errors import DataError
from mapet.evaluation.classify.classes import head_numbers, read_class_map
from mapet.evaluation.classify.protocol import validation_images
from tests.data.images import write_images
from tests.evaluation.test_validate import images_of


@pytest.mark.parametrize("form", ["{}", "{:02}", "{:03}"])
def test_folders_named_by_numbers_are_the_outputs_of_these_numbers(tmp_path: Path, form: str, capsys) -> None:
    """R6: as text, 10 comes before 2."""
    names = sorted(form.format(number) for number in range(12))
    source = validation_images(str(images_of(tmp_path / "val", classes=names, each=1)))
    assert source.classes == tuple(names)
    assert head_numbers(source, 12).tolist() == [int(name) for name in names]
    assert "order of their names" not in capsys.readouterr().err


@pytest.mark.parametrize("names", [("1", "2", "3"), ("0", "00", "1"), ("0", "2", "x"), ("cat", "dog", "owl")])
def test_the_order_of_other_names_is_said(tmp_path: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """R6."""
    source = validation_images(str(images_of(tmp_path / "val", classes=names, each=1)))
    assert head_numbers(source, 3).tolist() == [0, 1, 2]
    assert f"in the order of their names as text ({', '.join(names)}, ...). Give --class-map" in capsys.readouterr().err


def test_a_list_gives_the_order_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R6: no line where the order was given."""
    source = validation_images(str(images_of(tmp_path / "val", classes=("a", "b"), each=1)))
    source.classes = ("owl", "cat")
    assert head_numbers(source, 2).tolist() == [0, 1]
    assert capsys.readouterr().err == ""


def test_an_empty_line_of_a_class_map_is_refused(tmp_path: Path) -> None:
    """R17: it would shift all that follow. R23: a byte order mark is no part of a name."""
    (tmp_path / "map.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match=r"Line 2 of .*map\.txt is empty"):
        read_class_map(tmp_path / "map.txt")
    (tmp_path / "map.txt").write_bytes(b"\xef\xbb\xbfcat\ndog\n\n")
    assert read_class_map(tmp_path / "map.txt") == ("cat", "dog")


def test_the_part_that_is_validated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R2."""
    write_images(tmp_path, "Valid/a/1.png Valid/b/2.png test/a/3.png test/b/4.png test/b/5.png train/a/6.png train/b/7.png")
    assert len(validation_images(str(tmp_path))) == 2
    assert "Valid/ is validated on; left out: test/. --split test takes that one." in capsys.readouterr().err
    assert len(validation_images(f"{tmp_path}#split=test")) == 3
    assert len(validation_images(f"{tmp_path}#split=train")) == 2
    with pytest.raises(DataError, match="has no split 'holdout'"):
        validation_images(f"{tmp_path}#split=holdout")
    with pytest.raises(DataError, match="has no splits of its own"):
        validation_images(f"{tmp_path / 'test'}#split=val")
