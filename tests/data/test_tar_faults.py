"""Odd tars: which members are images, which labels are theirs, and what is not used."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from mapet.data.webdataset import TarImages
from mapet.errors import DataError, UnreadableImageError
from tests.data.containers import write_tar
from tests.data.images import png
from tests.data.test_container_faults import labels, names


@pytest.mark.parametrize(
    "order", ["./0.png ./0.cls 1.png 1.cls", "0.cls ./0.png ././1.png .//1.cls", "./a/0.png a/0.cls ./a/1.png ./a/1.cls"]
)
def test_tars_of_a_whole_folder(tmp_path: Path, order: str) -> None:
    """R1: names that begin with ./ alone, or beside others that do not."""
    path = write_tar(tmp_path / "a.tar", [(name, name[-5].encode()) for name in order.split()])
    source = TarImages([path])
    assert [name.rpartition("/")[2].rpartition(" ")[2] for name in names(source)] == ["0.png", "1.png"]
    assert labels(source) == [0, 1]


def test_hidden_folders_in_tars_are_ignored_as_on_disk(tmp_path: Path) -> None:
    """R1."""
    hidden = ["./.git/x.png", ".cache/y.png", "a/.z.png", "./a/._b.png"]
    path = write_tar(tmp_path / "a.tar", [(name, b"") for name in [*hidden, "./a/b.png", "../c/d.png"]])
    assert names(TarImages([path])) == ["a.tar: a/b.png", "a.tar: ../c/d.png"]


@pytest.mark.parametrize(
    "members",
    [
        "v1.0001.png v1.0001.cls v1.0002.png v1.0002.cls",
        "v1.0001.CLS v1.0001.PNG v1.0002.Cls v1.0002.png",
        "a/v1.x.y1.jfif a/v1.x.y1.cls a/v1.x.y2.jpg a/v1.x.y2.cls",
        "1.png 1.CLS 2.png 2.Cls",
    ],
)
def test_labels_beside_images_of_any_name(tmp_path: Path, members: str) -> None:
    """R7."""
    contents = {True: b"1", False: b"0"}
    path = write_tar(tmp_path / "a.tar", [(name, contents["2" in name.rpartition(".")[0]]) for name in members.split()])
    assert labels(TarImages([path])) == [0, 1]
    text = {True: b'\xef\xbb\xbf{"label": "dog"}', False: b'{"label": "cat"}'}
    as_json = [(name.lower().replace(".cls", ".JSON"), name) for name in members.split()]
    path = write_tar(tmp_path / "b.tar", [(name, text["2" in old.rpartition(".")[0]]) for name, old in as_json])
    assert (labels(TarImages([path])), TarImages([path]).classes) == ([0, 1], ("cat", "dog"))


def test_a_label_of_several_images(tmp_path: Path) -> None:
    """R7: it belongs to the images that have none of their own."""
    members = [("v.1.png", b""), ("v.2.png", b""), ("v.2.cls", b"2"), ("v.cls", b"0")]
    assert labels(TarImages([write_tar(tmp_path / "a.tar", members)])) == [0, 2]


def test_labels_without_their_image_are_not_passed_over(tmp_path: Path) -> None:
    """R7."""
    members = [("v.1.png", b""), ("v.1.cls", b"0"), ("v.2.cls", b"1")]
    with pytest.raises(DataError, match=r"holds a label for 'v\.2' without an image beside it"):
        TarImages([write_tar(tmp_path / "a.tar", members)])


def test_members_that_are_not_used_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R7, R8."""
    unused = ["1.heic", "1.label", "1.mask.png", "2.raw", "3"]
    members = [("1.png", b""), ("1.txt", b""), ("readme.md", b""), (".DS_Store", b""), *((name, b"") for name in unused)]
    TarImages([write_tar(tmp_path / "a.tar", sorted(members))])
    said = capsys.readouterr().err
    assert "a.tar: 5 files in its tars are not used (" in said
    assert said.count("\n") == 1


def test_members_of_tars_have_a_limit_too(tmp_path: Path) -> None:
    """F7: the size in a header is a claim."""
    path = tmp_path / "a.tar"
    for name, size in (("a.png", 2**31), ("a.cls", 2**31)):
        members = [*([] if name == "a.png" else [("a.png", png(0))]), (name, b"")]
        write_tar(path, members)
        content = bytearray(path.read_bytes())
        member = tarfile.TarInfo(name)
        member.size = size
        offset = content.index(name.encode().ljust(100, b"\0"))
        content[offset : offset + 512] = member.tobuf(tarfile.GNU_FORMAT)
        with path.open("wb") as file:
            file.write(content[: offset + 512])
            file.seek(size, 1)
            file.write(bytes(10240))
        if name == "a.png":
            with pytest.raises(UnreadableImageError, match=r"it has 2,147,483,648 bytes, and at most"):
                TarImages([path]).read(0)
        else:
            with pytest.raises(DataError, match=r"a\.cls has 2,147,483,648 bytes, which is no label"):
                TarImages([path])
