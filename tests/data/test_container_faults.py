"""Odd containers: what is read, what is left out with a line, and what is refused in words."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from mapet.data import decode, image_names, tree
from mapet.data.folder import FolderImages
from mapet.data.labels import listed_classes
from mapet.data.listing import ListedImages
from mapet.data.locations import open_location
from mapet.data.source import Concatenation, ImageSource
from mapet.data.sources import open_source, open_splits
from mapet.data.webdataset import TarImages
from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.regular import read_regular
from tests.data.containers import Labelled, as_dataset, in_parquet, in_tar, write_tar
from tests.data.images import png, write_images


def names(source: ImageSource) -> list[str]:
    return [source.describe(index).removeprefix(f"{source.location}/") for index in range(len(source))]


def labels(source: ImageSource) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


SUFFIXES = [
    "jpg",
    "JPEG",
    "jpe",
    "jfif",
    "png",
    "apng",
    "bmp",
    "gif",
    "webp",
    "TIF",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "avif",
    "jp2",
]


def test_what_pillow_reads_is_an_image_in_every_container(tmp_path: Path) -> None:
    """R8."""
    files = [f"{number:02}.{suffix}" for number, suffix in enumerate(SUFFIXES)]
    write_images(tmp_path / "images", " ".join(f"cat/{name}" for name in files))
    assert len(FolderImages(tmp_path / "images" / "cat")) == len(FolderImages(tmp_path / "images")) == len(files)
    assert len(TarImages([write_tar(tmp_path / "a.tar", [(name, png(0)) for name in files])])) == len(files)
    assert [*decode.FORMATS] == sorted(image_names.SUFFIXES)


def test_files_that_might_be_images_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R8: in one line; what usually lies beside images is not."""
    quiet = ".DS_Store Thumbs.db readme.txt labels.json list.csv LICENSE desktop.ini a.parquet"
    write_images(
        tmp_path, f"cat/1.png dog/2.png cat/3.HEIC dog/4.cr2 dog/5.xyz dog/6 {' '.join(f'cat/{name}' for name in quiet.split())}"
    )
    assert len(FolderImages(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: 4 files are left out (cat/3.HEIC, dog/4.cr2, dog/5.xyz, ...). Files ending in .jpg")


def test_lists_beside_class_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R7, R8: what could name labels and parts is not passed over without a word."""
    write_images(tmp_path, "cat/1.png dog/2.png train.csv Test.CSV")
    assert len(FolderImages(tmp_path)) == 2
    expected = f"{tmp_path}: the lists in it are not read (Test.CSV, train.csv). To take images and labels from one, give its path."
    assert capsys.readouterr().err.splitlines() == [expected]


@pytest.fixture
def odd_files(tmp_path: Path) -> Path:
    """A folder with files of every kind that have no end, or no content."""
    folder = tmp_path / "odd"
    write_images(folder, "1.png 2.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "null.png").symlink_to("/dev/null")
    (folder / "linked.png").symlink_to("pipe.png")
    with (folder / "vast.png").open("wb") as file:
        file.truncate(2**40)
    return folder


REASONS = {
    "pipe": "a named pipe",
    "zero": "a device",
    "null": "a device",
    "linked": "a named pipe",
    "vast": "at most 1,073,741,824 are",
}


@pytest.mark.parametrize("container", ["flat", "classes", "csv"])
def test_only_regular_files_of_a_size_are_read(odd_files: Path, container: str) -> None:
    """F7: others are unreadable images, with the reason; nothing blocks."""
    if container == "csv":
        (odd_files / "a.csv").write_text("path\n" + "".join(f"{path.name}\n" for path in sorted(odd_files.iterdir())))
        source: ImageSource = ListedImages(odd_files / "a.csv")
    elif container == "classes":
        write_images(odd_files.parent, "root/dog/1.png")
        odd_files.rename(odd_files.parent / "root" / "cat")
        source = FolderImages(odd_files.parent / "root")
    else:
        source = FolderImages(odd_files)
    found = {Path(source.describe(index)).stem: index for index in range(len(source))}
    for name, reason in REASONS.items():
        with pytest.raises(UnreadableImageError, match=reason):
            source.read(found[name])
    assert source.read(found["2"]) == png(1)


def test_sockets_folders_and_files_that_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F7."""
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.png")
        with pytest.raises(OSError, match="a socket, not a regular file"):
            read_regular("socket.png", 10)
    with pytest.raises(OSError, match="a folder, not a regular file"):
        read_regular(tmp_path, 10)
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_regular(tmp_path / "a", 10) == b"0123456789"
    with pytest.raises(OSError, match="it has 10 bytes, and at most 9 are read"):
        read_regular(tmp_path / "a", 9)
    if Path("/proc/self/maps").exists():  # files whose size is 0 and which hold something
        with pytest.raises(OSError, match="at most 20 are read"):
            read_regular("/proc/self/maps", 20)
        assert read_regular("/proc/self/maps", 2**30)


@pytest.mark.parametrize("name", ["a.tar", "a.csv", "a.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_containers_are_regular_files_too(tmp_path: Path, name: str, kind: str) -> None:
    """F7."""
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"a named pipe|a device"):
        open_source(tmp_path / name)


def test_lists_of_classes_that_are_no_files_count_for_nothing(tmp_path: Path) -> None:
    """F7."""
    (tmp_path / "labels.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "classes.txt")
    assert listed_classes(tmp_path) is None


@pytest.mark.parametrize("below", ["cat", "cat/deep", "cat/deep/er", ""])
def test_a_folder_that_cannot_be_read_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    """F8."""
    write_images(tmp_path, "cat/1.png cat/deep/er/2.png dog/3.png")
    scandir = os.scandir

    def refuse(folder: Path | str):
        if Path(folder) == tmp_path / below:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(tree.os, "scandir", refuse)
    for opening in (lambda: open_source(tmp_path, "all"), lambda: FolderImages(tmp_path, class_depth=1)):
        with pytest.raises(DataError, match=r"The folder .* cannot be read: Permission denied\. Make it readable"):
            opening()


def test_an_unreadable_neighbour_of_splits_is_named_and_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    """F8: what is used can be read."""
    write_images(tmp_path, "train/cat/1.png val/cat/2.png secret/3.png lost+found/4.png")
    scandir = os.scandir

    def refuse(folder: Path | str):
        if Path(folder).name in ("secret", "lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(tree.os, "scandir", refuse)
    assert len(open_source(tmp_path, "all")) == 2
    assert "train, val are taken as splits; left out: secret." in capsys.readouterr().err


def test_folders_of_the_system_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png dog/2.png lost+found/3.png __MACOSX/cat/x.png cat/@eaDir/1.png")
    assert names(FolderImages(tmp_path)) == ["cat/1.png", "dog/2.png"]


@pytest.mark.parametrize(
    ("link", "target"), [("a/again", ".."), ("b/again", "../.."), ("a/b", "../b"), ("c", "a"), ("a/deep", "../b/deep")]
)
def test_links_that_make_a_folder_part_of_two_classes(tmp_path: Path, link: str, target: str) -> None:
    """F24."""
    write_images(tmp_path / "root", "a/1.png b/2.png b/deep/3.png")
    (tmp_path / "root" / link).symlink_to(target)
    with pytest.raises(DataError, match=r"A link makes one folder part of two classes: .* Remove the link"):
        open_source(tmp_path / "root", "all")


def test_links_that_stay_within_a_class_are_followed(tmp_path: Path) -> None:
    """F24: classes may be links, and lead elsewhere."""
    write_images(tmp_path, "elsewhere/x/1.png elsewhere/y/2.png root/b/3.png")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "root" / "b" / "more").symlink_to(tmp_path / "elsewhere" / "y")
    (tmp_path / "root" / "b" / "self").symlink_to(".")
    source = FolderImages(tmp_path / "root")
    assert names(source) == ["a/1.png", "b/3.png", "b/more/2.png"]
    assert labels(source) == [0, 1, 1]


def test_rows_of_a_list_with_too_many_cells(tmp_path: Path) -> None:
    """F24."""
    (tmp_path / "a.csv").write_text("path,label\na.png,0\nb.png,1,2\n")
    with pytest.raises(DataError, match=r"Row 2 of .*a\.csv has 3 cells, and the first line names 2 columns.*double quotes"):
        ListedImages(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("path,Path,label\na.png,b.png,0\n")
    with pytest.raises(DataError, match="has two columns called 'path'"):
        ListedImages(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"path\na\0b.png\n")
    with pytest.raises((UnreadableImageError, DataError), match=r"null byte|NUL"):
        ListedImages(tmp_path / "a.csv").read(0)


@pytest.mark.parametrize("listing", [b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat\ndog", b" cat \ndog\n\n\n"])
def test_lists_of_classes(tmp_path: Path, listing: bytes) -> None:
    """R23: a byte order mark is no part of a name. R17: empty lines at the end count for nothing."""
    (tmp_path / "labels.txt").write_bytes(listing)
    assert listed_classes(tmp_path) == ("cat", "dog")


@pytest.mark.parametrize(("listing", "line"), [("cat\n\ndog\n", 2), ("\ncat\n", 1), ("cat\ndog\n \t\nowl", 3)])
def test_lists_with_an_empty_line(tmp_path: Path, listing: str, line: int) -> None:
    """R17."""
    (tmp_path / "classes.txt").write_text(listing)
    with pytest.raises(DataError, match=rf"Line {line} of .*classes\.txt is empty, and line n names the class n - 1"):
        listed_classes(tmp_path)


def test_two_lists_of_classes_must_agree(tmp_path: Path) -> None:
    """R17."""
    for name in ("labels.txt", "classes.txt"):
        (tmp_path / name).write_text("cat\ndog\n")
    assert listed_classes(tmp_path) == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r"labels\.txt and classes\.txt in .* name different classes"):
        listed_classes(tmp_path)


def test_splits_below_class_folders_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R2."""
    write_images(tmp_path, "cat/train/1.png cat/test/2.png dog/train/3.png")
    assert open_source(tmp_path, "all").classes == ("cat", "dog")
    assert "3 deeper folders are not used as classes (cat/test, cat/train, dog/train)" in (said := capsys.readouterr().err)
    assert "Splits belong above class folders." in said


def test_other_line_ends_within_a_name_are_no_lines(tmp_path: Path) -> None:
    """R17."""
    (tmp_path / "labels.txt").write_text("cat\x0cblack\ndog\u2028brown\nowl", encoding="utf-8")
    assert listed_classes(tmp_path) == ("cat black", "dog brown", "owl")


def test_the_test_part_has_a_list_of_its_own(tmp_path: Path) -> None:
    """R4: numbers of one list are paired with those of another by name."""
    for part, order in (("train", "cat dog"), ("val", "dog cat")):
        in_tar(tmp_path / part / "0.tar", [Labelled("0.png", png(0), 0), Labelled("1.png", png(1), 1)])
        (tmp_path / part / "labels.txt").write_text("\n".join(order.split()))
    train, val = open_splits(tmp_path)
    assert train.classes == val.classes == ("cat", "dog")
    assert (labels(train), labels(val)) == ([0, 1], [1, 0])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_names_in_one_part_and_numbers_in_the_other(tmp_path: Path, order: tuple[int, int]) -> None:
    """R4."""
    parts = [tmp_path / name for name in ("train", "val")]
    write_images(parts[order[0]], "cat/1.png dog/2.png")
    write_tar(parts[order[1]] / "0.tar", [("0.cls", b"1"), ("0.png", b"")])
    with pytest.raises(DataError, match=r"are class (names|numbers), those of .* which number is which class is not known"):
        open_splits(tmp_path)


def test_parts_that_number_classes_otherwise_are_joined_by_name(tmp_path: Path) -> None:
    """R4."""
    write_images(tmp_path, "one/cat/1.png one/dog/2.png two/dog/3.png two/cat/4.png two/ant/5.png")
    parts: list[ImageSource] = [FolderImages(tmp_path / "one"), FolderImages(tmp_path / "two", classes=("dog", "cat", "ant"))]
    with pytest.raises(DataError, match=r"5\.png is labelled 'ant', which is none of the 2 classes known"):
        Concatenation(parts, "both")
    (tmp_path / "two" / "ant" / "5.png").unlink()
    (tmp_path / "two" / "ant").rmdir()
    parts[1] = FolderImages(tmp_path / "two", classes=("dog", "cat"))
    assert labels(Concatenation(parts, "both")) == [0, 1, 0, 1]


def test_saved_splits_are_paired_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4."""
    import datasets

    parts = {}
    for split, order in (("train", ["cat", "dog"]), ("Validation", ["dog", "cat"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=order)})
        images = [{"bytes": png(number), "path": None} for number in range(2)]
        parts[split] = datasets.Dataset.from_dict({"image": images, "label": ["cat", "dog"]}, features=features)
        parts[split].save_to_disk(tmp_path / "saved" / split)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "Validation"]}')
    train, val = open_splits(tmp_path / "saved")
    assert (labels(train), labels(val), val.classes) == ([0, 1], [0, 1], ("cat", "dog"))
    information = tmp_path / "saved" / "train" / "dataset_info.json"
    information.write_text(information.read_text().replace('"cat"', '"ox"'))
    with pytest.raises(DataError, match="names the classes of 'label' otherwise than the rest"):
        open_splits(tmp_path / "saved")


def test_a_folder_of_parquet_beside_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R25: what the Hub's repositories look like."""
    as_dataset([Labelled("0.png", png(0), 0)]).to_parquet((tmp_path / "data").mkdir() or tmp_path / "data" / "train-0.parquet")
    write_images(tmp_path, "assets/banner.png")
    capsys.readouterr()
    assert names(open_source(tmp_path, "all")) == ["train-0.parquet row 0 (0.png)"]
    assert "data/ holds Parquet files or tars and is taken; left out: assets/ with images." in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    in_parquet(tmp_path / "other" / "a.parquet", [Labelled("0.png", png(0), 0)])
    with pytest.raises(DataError, match=r"holds Parquet files or tars in data/, and more in other/\. Give one of them"):
        open_source(tmp_path)
    (tmp_path / "other" / "a.parquet").unlink()
    write_images(tmp_path, "other/1.png")
    with pytest.raises(DataError, match=r"holds Parquet files or tars in data/, and more in assets/, other/"):
        open_source(tmp_path)


def test_a_class_folder_without_images_is_named_with_what_it_holds(tmp_path: Path) -> None:
    """R25: the true cause, also among many folders."""
    write_images(tmp_path, " ".join(f"class{number:02}/{number}.png" for number in range(21)))
    in_parquet(tmp_path / "class99" / "a.parquet", [Labelled("0.png", png(0), 0)])
    with pytest.raises(DataError, match=r"class99 holds no images but a\.parquet \(1 of 22 class folders hold none\)"):
        open_location(tmp_path)


def test_labels_are_int64(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.png dog/2.png")
    found = FolderImages(tmp_path).labels
    assert found is not None
    assert found.dtype == np.int64
