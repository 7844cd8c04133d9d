"""What is taken where several things could be meant, and patterns of files."""

from pathlib import Path

import pytest

from mapet.data.folder import FolderImages
from mapet.data.locations import expand_braces, matching_files, open_location
from mapet.data.parquet import ParquetImages
from mapet.data.source import ImageSource
from mapet.data.webdataset import TarImages
from mapet.errors import DataError
from tests.data.containers import Labelled, in_parquet, write_tar
from tests.data.images import png, write_images


def tars(folder: Path, names: str) -> None:
    for seed, name in enumerate(names.split()):
        write_tar(folder / name, [(f"{seed}.png", png(seed))])


def opened(location: str | Path) -> list[list[str]]:
    return [[part.describe(index).split("/")[-1] for index in range(len(part))] for part in parts_of(location)]


def parts_of(location: str | Path) -> list[ImageSource]:
    parts = open_location(location)
    assert parts is not None
    return [*parts.values()]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", "a.tar"),
        ("a-{08..11}.tar", "a-08.tar a-09.tar a-10.tar a-11.tar"),
        ("{a,b}-{0..1}", "a-0 a-1 b-0 b-1"),
        ("{a-{0..1},b}", "a-0 b a-1"),
        ("a{,-b}", "a a-b"),
        ("{a,a}", "a"),
        ("{3..1}", ""),
        ("a{b", "a{b"),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names.split()


def test_files_of_a_pattern(tmp_path):
    tars(tmp_path, "t-1.tar t-0.tar t-10.tar u.tar")

    def matching(pattern: str) -> str:
        return " ".join(path.name for path in matching_files(str(tmp_path / pattern)))

    assert matching("t-*.tar") == "t-0.tar t-1.tar t-10.tar"
    assert matching("{u,t-?}.tar") == "u.tar t-0.tar t-1.tar"
    assert matching("t-{10..10}.tar") == "t-10.tar"
    assert matching("x-{0..9}.tar") == matching("x.tar") == matching("{3..1}.tar") == ""
    with pytest.raises(DataError, match=r"t-2\.tar is not there \(8 of the 10 files of .*t-\{0\.\.9\}\.tar are missing\)"):
        matching("t-{0..9}.tar")
    with pytest.raises(DataError, match=r"v-\*\.tar is not there \(1 of the 2"):
        matching("{t,v}-*.tar")


def test_nothing_there(tmp_path):
    for location in (tmp_path / "none", tmp_path / "none-*.tar", str(tmp_path / "none-{0..3}.tar")):
        assert open_location(location) is None


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    tars(tmp_path, "a[1].tar a1.tar")
    assert opened(tmp_path / "a[1].tar") == [["a[1].tar: 0.png"]]


def test_tars_by_name_of_split(tmp_path):
    tars(tmp_path, "train-0.tar train-1.tar val-0.tar test-0.tar")
    train, val, test = ["train-0.tar: 0.png", "train-1.tar: 1.png"], ["val-0.tar: 2.png"], ["test-0.tar: 3.png"]
    assert opened(tmp_path) == opened(f"{tmp_path}/*.tar") == [train, val, test]
    assert opened(f"{tmp_path}/train-{{0..1}}.tar") == [train]
    assert opened(tmp_path / "test-0.tar") == [test]


def test_classes_are_those_of_the_training_part(tmp_path):
    for name, labels in (("train", ("cat", "dog")), ("val", ("dog",))):
        write_tar(tmp_path / f"{name}.tar", [m for x in labels for m in ((f"{x}.cls", x.encode()), (f"{x}.png", b""))])
    train, val = parts_of(tmp_path)
    assert train.classes == val.classes == ("cat", "dog")
    assert val.labels is not None
    assert val.labels.tolist() == [1]


def test_tars_in_a_single_folder_and_in_folders_of_splits(tmp_path):
    tars(tmp_path / "a" / "shards", "0.tar 1.tar")
    assert opened(tmp_path / "a") == [["0.tar: 0.png", "1.tar: 1.png"]]
    tars(tmp_path / "b" / "train", "0.tar 1.tar")
    tars(tmp_path / "b" / "val", "0.tar")
    assert opened(tmp_path / "b") == [["0.tar: 0.png", "1.tar: 1.png"], ["0.tar: 0.png"]]


@pytest.mark.parametrize(
    "images", ["1.png", "cat/1.png dog/1.png", "train/cat/1.png train/dog/1.png val/cat/1.png", "images/deep/1.png"]
)
def test_tars_beside_images_are_backups(tmp_path, capsys, images):
    write_images(tmp_path, images)
    tars(tmp_path, "train.tar val.tar")
    parts = parts_of(tmp_path)
    assert all(type(part) is FolderImages for part in parts)
    assert sum(map(len, parts)) == len(images.split())
    said = " ".join(capsys.readouterr().err.split())
    assert ("holds images and tars: the images are taken. Give train.tar or a pattern" in said) is (
        images in ("1.png", "cat/1.png dog/1.png")
    )


@pytest.mark.parametrize("folder", [".", "train"])
def test_images_beside_parquet_are_never_left_out_silently(tmp_path, capsys, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    in_parquet(tmp_path / folder / "a.parquet", [Labelled("a.png", png(0), 0)])
    parts_of(tmp_path)
    assert "image files" not in capsys.readouterr().err
    write_images(tmp_path / folder, "1.png 2.png")
    assert sum(map(len, parts_of(tmp_path))) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "holds Parquet files and 2 image files: the Parquet files are taken" in said


def test_parquet_goes_before_tars(tmp_path):
    in_parquet(tmp_path / "a.parquet", [Labelled("a.png", png(0), 0)])
    tars(tmp_path, "a.tar")
    (part,) = parts_of(tmp_path)
    assert type(part) is ParquetImages


def test_folders_without_images_do_not_hide_tars(tmp_path):
    tars(tmp_path, "a.tar .hidden.tar")
    (tmp_path / "logs").mkdir()
    (tmp_path / "a.tar.idx").touch()
    (part,) = parts_of(tmp_path)
    assert type(part) is TarImages
    assert len(part) == 1


def test_odd_things_called_tar(tmp_path):
    write_images(tmp_path / "a.tar", "1.png")
    (part,) = parts_of(tmp_path)
    assert type(part) is FolderImages
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "lost.tar").symlink_to("nowhere.tar")
    with pytest.raises(DataError, match=r"lost\.tar cannot be read: No such file"):
        open_location(tmp_path / "shards")


def test_compressed_tars_are_not_passed_over(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b\x08")
    for location in (tmp_path, tmp_path / "a.tar.gz", tmp_path / "*.gz"):
        with pytest.raises(DataError, match=r"a\.tar\.gz is compressed"):
            open_location(location)


def test_files_of_different_kinds(tmp_path):
    tars(tmp_path, "a.tar")
    (tmp_path / "a.csv").write_text("path\na.png\n")
    with pytest.raises(DataError, match=r"a\.csv and the other 1 files are not all tars or all Parquet"):
        open_location(tmp_path / "a.*")
    with pytest.raises(DataError, match=r"classes\.txt is a single file\. Give the folder"):
        open_location(write_text(tmp_path / "classes.txt"))


def write_text(path: Path) -> Path:
    path.write_text("cat")
    return path


def test_more_than_a_million_files_are_refused():
    """F18."""
    with pytest.raises(DataError, match="stands for more than 1,000,000 files"):
        expand_braces("x-{0..1000000}.tar")


@pytest.mark.parametrize(
    "pattern", ["x-{0..99999999999}.tar", "{a,b}" * 40, "{0..9999}{0..9999}", "{" * 3000 + "a,b" + "}" * 3000 + "{1..2}" * 40]
)
def test_braces_that_expand_without_end_are_refused_at_once(pattern):
    """F18; of a million names, the limit, the test would take ten seconds."""
    with pytest.raises(DataError, match="stands for more than 10,000 files"):
        expand_braces(pattern, most=10_000)


def test_braces_within_many_braces_are_expanded():
    assert expand_braces("{" * 3000 + "a" + "}" * 3000) == ["a"]
