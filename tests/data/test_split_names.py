"""R2: one list of split names for every container; what is used and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from mapet.data.address import DataAddress, with_options
from mapet.data.folder import FolderImages
from mapet.data.source import ImageSource
from mapet.data.sources import absolute_location, open_source, open_splits
from mapet.data.splits import SPLIT_NAMES, by_split, split_files, split_named, split_rows
from mapet.errors import DataError
from tests.data.containers import Labelled, as_dataset, in_parquet, in_tar
from tests.data.images import png, write_images

PAIRS = [("train", "valid"), ("Train", "Test"), ("training", "testing"), ("TRAINING", "VALIDATION"), ("trn", "tst")]
PAIRS += [("train", "dev"), ("trainval", "test"), ("Training_Set", "Test Set"), ("train2017", "val2017"), ("train", "test1")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def samples(first: int, count: int = 4) -> list[Labelled]:
    return [Labelled(f"{number}.png", png(number), number % 2) for number in range(first, first + count)]


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(index) for index in range(len(source))]


def in_folders(root: Path, name: str, part: list[Labelled]) -> Path | str:
    for sample in part:
        path = root / name / ("cat", "dog")[sample.label] / sample.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
    return root


def in_parquets(root: Path, name: str, part: list[Labelled]) -> Path | str:
    in_parquet(root / f"{name}-0.parquet", part)
    return root


def in_tars(root: Path, name: str, part: list[Labelled]) -> Path | str:
    in_tar(root / f"x_{name}.tar", part)
    return root


def in_csv(root: Path, name: str, part: list[Labelled]) -> Path | str:
    in_folders(root, "files", part)
    listing = root / "a.csv"
    if not listing.exists():
        listing.write_text("Path,Label,Split\n")
    with listing.open("a") as file:
        file.writelines(f"files/{('cat', 'dog')[s.label]}/{s.name},{('cat', 'dog')[s.label]},{name}\n" for s in part)
    return listing


def saved(root: Path, name: str, part: list[Labelled]) -> Path | str:
    folder = root / "saved"
    before = datasets.load_from_disk(str(folder)) if folder.exists() else datasets.DatasetDict()
    parts = {key: value.select(range(len(value))) for key, value in dict(before).items()}
    datasets.DatasetDict({**parts, name.replace(" ", "_"): as_dataset(part)}).save_to_disk(root / f"{name}.next")
    folder.rename(root / f"{name}.old") if folder.exists() else None
    (root / f"{name}.next").rename(folder)
    return folder


WRITERS = [in_folders, in_parquets, in_tars, in_csv, saved]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_usual_names_in_any_case_are_splits(tmp_path: Path, write, names: tuple[str, str]) -> None:
    """R2."""
    write(tmp_path / "data", names[1], samples(4))
    location = write(tmp_path / "data", names[0], samples(0))
    train, test = open_splits(location)
    assert sorted(contents(train)) == sorted(png(number) for number in range(4))
    assert sorted(contents(test)) == sorted(png(number) for number in range(4, 8))
    assert train.labels is not None
    assert (len({*train.labels}), train.classes) == (2, ("cat", "dog"))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_of_three_parts_it_is_said_which_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], write) -> None:
    """R2: val goes before test; --split takes the other one."""
    for name, first in (("test", 8), ("valid", 4), ("train", 0)):
        location = write(tmp_path / "data", name, samples(first))
    capsys.readouterr()
    assert sorted(contents(open_splits(location)[1])) == sorted(png(number) for number in range(4, 8))
    (line,) = capsys.readouterr().err.splitlines()
    assert "is for training" in line
    assert "left out: test. --split test evaluates on that one." in line
    for name in ("test", "testing", "Test"):
        train, test = open_splits(with_options(str(location), name, None))
        assert sorted(contents(test)) == sorted(png(number) for number in range(8, 12))
        assert len(train) == 4
    assert "left out: val" in capsys.readouterr().err
    assert len(open_source(f"{location}#split=test", "all")) == 12
    for name, message in (("train", "no part to evaluate on besides"), ("holdout", "has no split 'holdout'. It has: ")):
        with pytest.raises(DataError, match=message):
            open_splits(f"{location}#split={name}")


def test_a_class_may_be_called_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R2: beside other vehicles."""
    write_images(tmp_path, "car/1.png plane/2.png train/3.png")
    source = open_source(tmp_path, "all")
    assert source.classes == ("car", "plane", "train")
    assert "train/ counts as a class, like car, plane." in capsys.readouterr().err
    write_images(tmp_path, "test/4.png")
    assert open_source(tmp_path, "all").labels is None
    assert "train, test are taken as splits; left out: car, plane." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train/cat/1.png train/dog/2.png images/3.png", r"holds train/ with folders of images in it, .* beside images"),
        ("test/cat/1.png pictures/cat/2.png", r"holds test/ with folders of images in it, .* beside pictures"),
        ("test/cat/1.png val/cat/2.png", r"holds val/ and test/ and no training part\. Give .*val to use that part alone"),
        (
            "train/cat/1.png Training/cat/2.png val/cat/3.png",
            r"holds both 'Training' and 'train', which are two names of one split",
        ),
        ("train/cat/1.png val/cat/2.png valid/cat/3.png", r"holds both 'val' and 'valid'"),
    ],
)
def test_what_might_be_splits_or_classes_is_refused(tmp_path: Path, names: str, message: str) -> None:
    """R2."""
    write_images(tmp_path, names)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, "all")


def test_the_user_may_say_that_they_are_classes(tmp_path: Path) -> None:
    """R2."""
    write_images(tmp_path, "train/steam/1.png train/diesel/2.png images/3.png")
    assert open_source(f"{tmp_path}#class-depth=1", "all").classes == ("images", "train")


WORDED = ["seg_train seg_test seg_pred", "images_train images_val", "flowers_train flowers_test", "1_train 2_test"]
WORDED += ["SegTrain SegTest", "TrainPhotos TestPhotos", "train-crops-224 val-crops-224", "a.training a.validation predict"]


@pytest.mark.parametrize("names", WORDED)
@pytest.mark.parametrize("inside", ["", "{name}/"], ids=["once", "twice"])
def test_split_folders_with_a_prefix_or_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, inside: str) -> None:
    """R2: folders that are named alike but for the split; Kaggle's packages hold seg_train/seg_train/buildings."""
    first, second, *rest = names.split()
    for name, count in ((first, 3), (second, 2)):
        for kind in ("cat", "dog"):
            write_images(tmp_path, " ".join(f"{name}/{inside.format(name=name)}{kind}/{number}.png" for number in range(count)))
    for name in rest:
        write_images(tmp_path, f"{name}/{inside.format(name=name)}1.png")
    train, test = open_splits(tmp_path)
    assert (len(train), len(test), train.classes, test.classes) == (6, 4, ("cat", "dog"), ("cat", "dog"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is taken as" in line]
    assert f"{first}/ is taken as 'train', {second}/ is taken as '" in line
    assert ("; left out: " in line) is bool(rest)
    assert len(open_source(tmp_path, "train")) == 6
    assert len(open_splits(f"{tmp_path}#split={'val' if 'val' in second else 'test'}")[1]) == 4
    if not inside:
        assert open_source(f"{tmp_path}#class-depth=1", "all").classes == tuple(sorted(names.split()))


def test_worded_splits_of_images_without_labels(tmp_path: Path) -> None:
    """R2: as with whole names, they are no classes."""
    write_images(tmp_path, "images_train/1.png images_train/2.png images_val/3.png")
    assert open_source(tmp_path, "all").labels is None
    assert len(open_source(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    "names",
    [
        "test tube/1.png beaker/2.png steam train/3.png",
        "test tube/1.png steam train/3.png",
        "car/1.png model_train/2.png plane/3.png",
        "car/1.png plane/2.png toy_train/3.png toy_test/4.png",
        "car/a/1.png plane/a/2.png steam_train/a/3.png",
        "retrain/1.png contest/2.png",
        "bullet train/1.png steam train/2.png goods train/3.png",
        "train_test/1.png other/2.png",
    ],
)
def test_classes_whose_names_hold_a_word_of_splits(tmp_path: Path, names: str) -> None:
    """R2: they stay classes."""
    write_images(tmp_path, " ".join(names.replace(".png ", ".png|").replace(" ", "_").split("|")))
    assert open_source(tmp_path, "all").classes == tuple(
        sorted({name.split("/")[0].replace(" ", "_") for name in names.split(".png ")})
    )


@pytest.mark.parametrize(
    "names",
    [
        "train_cats/1.png train_dogs/2.png test_cats/3.png test_dogs/4.png",
        "fold1_train/a/1.png fold1_test/a/2.png fold2_train/a/3.png fold2_test/a/4.png",
        "photos_train/a/1.png drawings_test/a/2.png",
        "car/a/1.png plane/a/2.png toy_train/a/3.png toy_test/a/4.png",
        "seg_val/1.png seg_test/2.png",
    ],
)
def test_what_might_be_worded_splits_is_refused(tmp_path: Path, names: str) -> None:
    """R2."""
    write_images(tmp_path, names)
    with pytest.raises(DataError, match=r"not clear whether they are splits or classes.*--class-depth 1"):
        open_source(tmp_path, "all")
    assert open_source(f"{tmp_path}#class-depth=1", "all").labels is not None


@pytest.mark.parametrize("name", ["train", "Training", "test", "valid"])
def test_a_single_split_is_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """R2."""
    write_images(tmp_path, f"{name}/cat/1.png {name}/dog/2.png")
    (tmp_path / "logs").mkdir()
    if split_named(name) == "train":
        assert open_source(tmp_path, "all").classes == ("cat", "dog")
    (tmp_path / "logs").rmdir()
    assert open_source(tmp_path, "all").classes == ("cat", "dog")
    assert ("no other part: taken as the whole" in capsys.readouterr().err) is (split_named(name) != "train")


def test_a_flat_split_is_no_class(tmp_path: Path) -> None:
    """R2: it is not called a class folder in messages."""
    write_images(tmp_path, "train/1.png train/2.png")
    with pytest.raises(DataError, match="has no labels and no held-out part"):
        open_splits(tmp_path)


def test_names() -> None:
    """R2: every name of the list is one, whole and as a word of a file's name."""
    for split, names in SPLIT_NAMES.items():
        for name in names:
            assert split_named(name.title()) == split_named(f" {name}_set") == split_named(f"{name}-2012") == split
            other = "test" if split == "train" else "train"
            files = [Path(f"photos-{name}-0.tar"), Path(f"photos-{name.upper()}-1.tar"), Path(f"photos-{other}.tar")]
            assert [*split_files(files)] == (["train", split] if split != "train" else ["train", "test"])
    for name in ("trains", "retrain", "validity", "contest", "test tube", "steam train", "developer", "", "evaluate"):
        assert split_named(name) is None
    assert by_split(["val", "trainval", "train"], "x") == {"train": "train", "val": "val"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train-0 test-0 train-test-1", r"'train-test-1' holds the names of several splits \(test, train\)"),
        ("train-0 trainval-0 test", r"holds both 'train-0\.tar' and 'trainval-0\.tar'"),
        ("train dev-0 val-0", r"holds both 'dev-0\.tar' and 'val-0\.tar'"),
        ("train val extra", r"holds extra\.tar beside files named after splits"),
    ],
)
def test_file_names_that_are_not_clear(names: str, message: str) -> None:
    """R2."""
    with pytest.raises(DataError, match=message):
        split_files([Path(f"{name}.tar") for name in names.split()])


def test_files_without_a_training_part_are_one_collection(capsys: pytest.CaptureFixture[str]) -> None:
    """R2."""
    assert split_files([Path("val.tar"), Path("test.tar")]) == {}
    assert "holds files for val and test and none for training: all are taken as one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["train", "fold 1"],
            r"image 1 has the split 'fold 1'; the column 'split' may hold train \(training, trn, trainval\), val",
        ),
        (["train", ""], "image 1 has the split ''"),
        (["val", "test"], r"names val and test, and no row is for training"),
    ],
)
def test_columns_that_do_not_name_splits(values: list[str], message: str) -> None:
    """R2."""
    with pytest.raises(DataError, match=message):
        split_rows({"split": values}, lambda index: f"image {index}", "x")


def test_a_column_that_names_one_split_splits_nothing(tmp_path: Path) -> None:
    in_csv(tmp_path, "TRAIN", samples(0))
    assert len(open_source(tmp_path / "a.csv", "all")) == 4
    assert isinstance(open_source(tmp_path / "a.csv", "all").classes, tuple)


def test_splits_by_file_and_by_column_must_agree(tmp_path: Path) -> None:
    """R2."""
    in_csv(tmp_path, "train", samples(0))
    in_csv(tmp_path, "test", samples(4))
    (tmp_path / "a.csv").rename(tmp_path / "train.csv")
    in_csv(tmp_path, "test", samples(8))
    (tmp_path / "a.csv").rename(tmp_path / "val.csv")
    with pytest.raises(
        DataError, match=r"belongs to 'train' by the name of its file, and its column names the splits train and test"
    ):
        open_splits(f"{tmp_path}/{{train,val}}.csv")


@pytest.mark.parametrize("kind", ["1.png 2.png", "cat/1.png dog/2.png"])
def test_a_split_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path, kind)
    with pytest.raises(DataError, match=r"has no splits of its own, so that there is no 'test'\. Leave out --split"):
        open_source(f"{tmp_path}#split=test")
    with pytest.raises(DataError, match="'digits' has neither splits by name nor class folders"):
        open_source("digits#split=test")


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("a/b", ("a/b", None, None)),
        ("a#b#split=Test Set", ("a#b", "Test Set", None)),
        ("a#split=test,class-depth=2", ("a", "test", 2)),
        ("hf://a/b@c/d#class-depth=3", ("hf://a/b@c/d", None, 3)),
        ("a#class-depth=x", ("a#class-depth=x", None, None)),
        ("a#split=", ("a#split=", None, None)),
    ],
)
def test_addresses(location: str, address: tuple) -> None:
    assert DataAddress.parse(location) == DataAddress(*address)
    assert str(DataAddress.parse(location)) == location


def test_options_of_the_command_line_become_part_of_the_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_options("a", None, None) == "a"
    assert with_options("a#split=val", "test", 2) == "a#split=test,class-depth=2"
    monkeypatch.chdir(tmp_path)
    assert absolute_location("a#split=test") == f"{tmp_path}/a#split=test"
    assert absolute_location("digits#split=test") == "digits#split=test"
    with pytest.raises(DataError, match="is no name of a split"):
        with_options("a", "x,y", None)
    with pytest.raises(DataError, match=r"class depth is 99; allowed: 1 .* to 20"):
        open_source("a#class-depth=99")


def test_class_folders_at_a_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, "train/pets/cat/1.png train/pets/dog/old/2.png train/wild/owl/3.png val/wild/owl/4.png")
    assert open_source(tmp_path, "train").classes == ("pets", "wild")
    said = capsys.readouterr().err
    assert "3 deeper folders are not used as classes (pets/cat, pets/dog/old, wild/owl); the 2 folders above them are" in said
    assert "--class-depth 2 takes the folders one level deeper" in said
    train, test = open_splits(f"{tmp_path}#class-depth=2")
    assert train.classes == test.classes == ("pets/cat", "pets/dog", "wild/owl")
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2], [2])
    assert "1 deeper folders are not used as classes (pets/dog/old)" in capsys.readouterr().err
    with pytest.raises(
        DataError, match=r"are to lie 3 levels below it, and .*pets/cat lies 2 levels below it: '1\.png' lies in it"
    ):
        FolderImages(tmp_path / "train", class_depth=3)
    with pytest.raises(DataError, match="--class-depth is about folders of images"):
        open_source(f"{in_csv(tmp_path / 'list', 'train', samples(0))}#class-depth=2")


def test_a_wrapper_around_class_folders_at_a_depth(tmp_path: Path) -> None:
    write_images(tmp_path, "set/photos/cat/1.png set/photos/dog/2.png")
    assert open_source(f"{tmp_path / 'set'}#class-depth=2", "all").classes == ("photos/cat", "photos/dog")
    write_images(tmp_path, "set2/wrapped/train/a/x/1.png set2/wrapped/train/a/y/1.png set2/wrapped/val/a/x/2.png")
    assert open_splits(f"{tmp_path / 'set2'}#class-depth=2")[1].classes == ("a/x", "a/y")


@pytest.mark.parametrize("names", [("entrenamiento", "prueba"), ("训练", "测试"), ("Trainings", "Tests"), ("a", "b", "c")], ids=str)
def test_parts_named_in_another_language_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    """R2: folders that hold the same folders of images are refused, and each way out is open."""
    write_images(tmp_path, " ".join(f"{name}/{label}/{n}.png" for name in names for label in ("cat", "dog") for n in range(2)))
    with pytest.raises(DataError, match=r"hold the same folders of images: cat, dog\. If they are parts.*--class-depth 1; if"):
        open_source(tmp_path, "all")
    for depth, count in ((1, len(names)), (2, 2 * len(names))):
        assert len(FolderImages(tmp_path, class_depth=depth).classes or ()) == count


@pytest.mark.parametrize(
    "paths",
    [
        "cat/front/1.png cat/back/2.png dog/front/3.png",
        "cat/2020/1.png dog/2020/2.png",
        " ".join(f"{name}/{side}/{name}.png" for name in "abcde" for side in ("front", "back")),
        "train/cat/front/1.png train/cat/back/2.png train/dog/front/3.png train/dog/back/4.png test/cat/5.png test/dog/6.png",
    ],
)
def test_classes_with_folders_of_their_own_stay_classes(tmp_path: Path, paths: str) -> None:
    """R2: where the folders differ, are many, or lie in a split."""
    write_images(tmp_path, paths)
    source = open_source(tmp_path, "all")
    assert len(source) == len(paths.split())
    assert source.labels is not None
