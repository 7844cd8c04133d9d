"""F25: a line end in the name of an image forges no line of mapet's."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mapet.data.folder import FolderImages
from mapet.data.sources import open_source

NAME = "a\nmapet: all is well.png"


def content() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def folder(path: Path) -> str:
    for name in (NAME, "b.png"):
        (path / name).write_bytes(content())
    return str(path)


def table(path: Path) -> str:
    folder(path)
    (path / "list.csv").write_text(f'path,label\n"{NAME}",x\nb.png,y\n', encoding="utf-8")
    return str(path / "list.csv")


def tar(path: Path) -> str:
    with tarfile.open(path / "train.tar", "w") as file:
        for name in (NAME, "b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content())
            file.addfile(member, io.BytesIO(content()))
    return str(path / "train.tar")


def parquet(path: Path) -> str:
    rows = pa.array([{"bytes": content(), "path": name} for name in (NAME, "b.png")])
    pq.write_table(pa.table({"image": rows}), path / "train.parquet")
    return str(path / "train.parquet")


@pytest.mark.parametrize("make", [folder, table, tar, parquet])
def test_f25_line_ends_in_names_are_escaped(make: Callable[[Path], str], tmp_path: Path) -> None:
    source = open_source(make(tmp_path), "all")
    names = [source.describe(index) for index in range(len(source))]
    assert any("a\\nmapet: all is well" in name for name in names)
    assert not any("\n" in name for name in names)


def test_folders_of_classes_and_files_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F25: the names of classes, of folders in them and of other files."""
    for name in ("a\nmapet:/x\ny/1.png", "b/2.png", "b/z\nmapet: done.raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content())
    FolderImages(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert r"a\nmapet:/x\ny" in lines[0]
    assert r"z\nmapet: done.raw" in lines[1]
