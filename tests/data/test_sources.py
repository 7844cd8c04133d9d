import io
import pickle
import threading
import time

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from rich.console import Console

from mapet.data.decode import decode_image
from mapet.data.digits import DigitImages
from mapet.data.source import ImageSource, sample_key, sample_keys, subset, with_keys
from mapet.data.sources import HELD_OUT_SHARE, absolute_location, hold_out, only_folder, open_source, open_splits
from mapet.errors import DataError, SettingsError
from tests.data.images import png, write_images
from tests.data_root import data_root


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(index) for index in range(len(source))]


def labels(source: ImageSource) -> list[int]:
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    return source.labels.tolist()


def open_one_image(location: str, split: str) -> ImageSource:
    return subset(DigitImages(), [len(split)])


def test_sample_key_is_the_content_and_nothing_else():
    assert sample_key(b"") == "cae66941d9efbd404e4d88758ea67670"
    assert sample_key(png(0)) != sample_key(png(1))
    large = bytes(2**20)
    assert len({sample_key(content) for content in (large, large[:-1] + b"1", b"1" + large[1:], large[:-1])}) == 4


def test_digits_are_scikit_learns_own():
    from sklearn.datasets import load_digits

    source = open_source("digits", "all")
    pixels, targets = map(np.asarray, load_digits(return_X_y=True))
    assert len(source) == 1797
    assert source.classes == tuple("0123456789")
    assert labels(source) == targets.tolist()
    image = decode_image(source.read(7))
    assert np.array_equal(np.asarray(image)[..., 1], np.rint(pixels[7].reshape(8, 8) * 255 / 16))


def test_digits_split_is_disjoint_complete_and_near_one_fifth():
    train, test = (set(sample_keys(open_source("digits", split))) for split in ("train", "test"))
    assert not train & test
    assert train | test == set(sample_keys(open_source("digits", "all")))
    assert abs(len(test) / 1797 - HELD_OUT_SHARE) < 0.03


def in_two_classes(*names: str) -> str:
    return " ".join(f"{('cat', 'dog')[number % 2]}/{name}" for number, name in enumerate(names))


def test_split_depends_on_content_not_on_names_or_order(tmp_path):
    write_images(tmp_path / "a", in_two_classes(*(f"{n:02}.png" for n in range(40))))
    write_images(tmp_path / "b", in_two_classes(*(f"x{99 - n}.png" for n in range(40))))
    parts = {name: [contents(open_source(tmp_path / name, split)) for split in ("train", "test")] for name in "ab"}
    assert [sorted(part) for part in parts["a"]] == [sorted(part) for part in parts["b"]]
    assert parts["a"] != parts["b"]
    assert all(parts["a"])


def test_images_without_labels_are_all_for_training(tmp_path, capsys):
    write_images(tmp_path, " ".join(f"{n:02}.png" for n in range(40)))
    assert contents(open_source(tmp_path, "train")) == contents(open_source(tmp_path, "all")) == [png(n) for n in range(40)]
    assert capsys.readouterr().err == ""
    for refused in (lambda: open_source(tmp_path, "test"), lambda: open_splits(tmp_path)):
        with pytest.raises(DataError, match=r"has no labels and no held-out part of its own.*one folder a class.*train/ and val/"):
            refused()


def test_a_hold_out_is_said_once(capsys):
    train, test = open_splits("digits")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Holding out {len(test)} of 1,797 images by content")
    assert (contents(train), labels(train)) == (contents(open_source("digits", "train")), labels(open_source("digits", "train")))
    assert (contents(test), labels(test)) == (contents(open_source("digits", "test")), labels(open_source("digits", "test")))


class CountedReads(DigitImages):
    reads = 0

    def read(self, index: int) -> bytes:
        type(self).reads += 1
        return super().read(index)


def test_every_image_is_read_once_for_its_key(monkeypatch):
    monkeypatch.setattr("mapet.data.digits.DigitImages", CountedReads)
    monkeypatch.setattr(CountedReads, "reads", 0)
    train, test = open_splits("digits")
    some = subset(subset(train, [5, 3, 4]), [2, 0])
    assert sample_keys(some) == [sample_keys(train)[4], sample_keys(train)[5]]
    assert len(sample_keys(with_keys(train))) + len(sample_keys(test)) == 1797
    assert CountedReads.reads == 1797
    assert sample_keys(some) == [sample_key(content) for content in contents(some)]


def test_keys_of_a_split_source_are_asked_for_once(tmp_path, monkeypatch):
    write_images(tmp_path, "train/cat/1.png train/dog/1.png val/dog/1.png")
    train = with_keys(open_splits(tmp_path)[0])
    monkeypatch.setattr("mapet.data.source.sample_key", None)
    assert sample_keys(train) == sample_keys(subset(train, [0, 1])) == [sample_key(png(0)), sample_key(png(1))]


def test_duplicates_fall_into_the_same_split():
    keys = sample_keys(hold_out(subset(DigitImages(), [5, 5, 9, 9, *range(20, 60)]))[0])
    assert sum(key == sample_key(DigitImages().read(5)) for key in keys) in (0, 2)
    assert sum(key == sample_key(DigitImages().read(9)) for key in keys) in (0, 2)


def test_empty_split_says_so(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(bytes([number]))
    assert len(open_source(tmp_path, "train")) == 2, "the keys of these two lie above the held-out fifth"
    for refused in (lambda: open_source(tmp_path, "test"), lambda: open_splits(tmp_path)):
        with pytest.raises(DataError, match=r"None of the 2 images of .* falls into the split 'test'.*train/ and val/"):
            refused()


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_folders_named_after_splits(tmp_path, held_out):
    write_images(tmp_path, f"train/cat/1.png train/dog/1.png {held_out}/dog/1.png")
    assert contents(open_source(tmp_path, "train")) == [png(0), png(1)]
    test = open_source(tmp_path, "test")
    assert contents(test) == [png(2)]
    assert test.classes == ("cat", "dog")
    assert labels(test) == [1]
    both = open_source(tmp_path, "all")
    assert contents(both) == [png(0), png(1), png(2)]
    assert labels(both) == [0, 1, 1]
    assert both.describe(2) == str(tmp_path / held_out / "dog" / "1.png")


def test_validation_goes_before_test_and_both_belong_to_all(tmp_path):
    write_images(tmp_path, "train/1.png test/1.png val/1.png")
    assert contents(open_source(tmp_path, "test")) == [png(2)]
    assert contents(open_source(tmp_path, "all")) == [png(0), png(2), png(1)]


def test_a_part_without_labels_makes_the_whole_unlabelled(tmp_path):
    write_images(tmp_path, "train/cat/1.png train/dog/1.png val/1.png")
    assert open_source(tmp_path, "train").labels is not None
    assert open_source(tmp_path, "all").labels is None


def test_a_single_folder_stands_for_its_parent(tmp_path):
    write_images(tmp_path, "photos/images/train/1.png photos/images/val/images/2.png")
    assert contents(open_source(tmp_path, "train")) == [png(0)]
    assert contents(open_source(tmp_path, "test")) == [png(1)]
    assert open_source(tmp_path, "test").labels is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("train/box/1.png val/box/2.png", "box"),
        ("wrapped/train/box/1.png wrapped/val/box/2.png", "box"),
        ("train/box/deep/1.png val/box/2.png", "deep"),
        ("train/1.png val/2.png", None),
        ("train/box/1.png train/cup/2.png val/box/3.png", None),
        ("train/all/1.png train/all/some/2.png val/3.png", None),
    ],
)
def test_the_only_class_folder_is_remembered(tmp_path, names, found):
    write_images(tmp_path, names)
    source = open_source(tmp_path, "train")
    assert only_folder(source) == found
    assert only_folder(subset(subset(source, [0]), [0])) == found


def test_one_class_folder_cannot_be_held_out_from(tmp_path):
    write_images(tmp_path, "photos/box/1.png photos/box/2.png")
    with pytest.raises(DataError, match=r"photos has one class folder \('box'\), and at least two classes are needed"):
        open_source(tmp_path / "photos", "test")
    assert len(open_source(tmp_path / "photos", "train")) == 2


def test_one_class_held_out_is_still_that_class(tmp_path):
    write_images(tmp_path, "train/cat/1.png train/dog/1.png val/dog/1.png")
    assert labels(open_source(tmp_path, "test")) == [1]


def test_parquet_by_file_by_name_and_by_folder(tmp_path):
    for number, name in enumerate(["train-0", "train-1", "test"]):
        table = pyarrow.table({"image": pyarrow.array([png(number)], pyarrow.binary()), "label": [number]})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert contents(open_source(tmp_path, "train")) == [png(0), png(1)]
    assert labels(open_source(tmp_path, "test")) == [2]
    assert contents(open_source(tmp_path, "all")) == [png(0), png(1), png(2)]
    assert contents(open_source(tmp_path / "train-1.parquet", "all")) == [png(1)]
    (tmp_path / "test.parquet").rename(tmp_path / "train-2.parquet")
    assert len(open_source(tmp_path, "all")) == 3


def test_anything_importable_is_a_source():
    source = open_source("tests.data.test_sources:open_one_image", "all")
    assert source.describe(0) == "digits sample 3"
    with pytest.raises(SettingsError, match=r"data source 'no\.such:thing' cannot be imported"):
        open_source("no.such:thing")


def test_locations_that_do_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"no file or folder digit.*Did you mean 'digits'"):
        open_source("digit")
    with pytest.raises(DataError, match=r"no split 'val'.*Allowed: all, test, train"):
        open_source("digits", "val")
    write_images(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"is a single file\. Give the folder"):
        open_source(tmp_path / "a.png")


def test_locations_stay_what_they_are_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "hf://datasets/owner/name", "tests.data.test_sources:open_one_image", str(tmp_path / "a")):
        assert absolute_location(name) == name
    assert absolute_location("./digits") == str(tmp_path / "digits")
    assert absolute_location("shards/train-{00..12}.tar") == str(tmp_path / "shards" / "train-{00..12}.tar")


def test_subset_keeps_the_order_given(tmp_path):
    source = DigitImages()
    part = subset(subset(source, [4, 2, 9]), np.array([2, 0]))
    assert contents(part) == [source.read(9), source.read(4)]
    assert labels(part) == [9, 4]
    assert part.describe(0) == "digits sample 9"
    assert part.classes == source.classes
    assert part.whole is source


def test_a_held_out_part_is_one_subset(tmp_path):
    """Subsets of subsets refer to the source itself, keys included."""
    for part in open_splits("digits"):
        inner = subset(part, [3, 1])
        assert isinstance(part.whole, DigitImages)
        assert inner.whole is part.whole
        assert sample_keys(inner) == [sample_key(inner.read(0)), sample_key(inner.read(1))]


@pytest.mark.parametrize("count", [1, 30, 700])
def test_keys_are_in_order_and_empty_where_unreadable(tmp_path, count):
    (tmp_path / "00000.png").write_bytes(b"")
    for number in range(count):
        (tmp_path / f"{number:05}.png").write_bytes(number.to_bytes(2))
    source = open_source(tmp_path, "all")
    (tmp_path / f"{count // 2:05}.png").unlink()
    assert sample_keys(source) == ["" if n == count // 2 else sample_key(n.to_bytes(2)) for n in range(count)]


class SlowImages(DigitImages):
    """As many large files take their time."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.threads = count, set()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        self.threads.add(threading.get_ident())
        time.sleep(0.01)
        return super().read(index)


@pytest.mark.parametrize("count", [8, 70])
def test_few_large_files_are_read_by_several_threads_too(count):
    source = SlowImages(count)
    sample_keys(source)
    assert len(source.threads) > 1


def test_progress_of_reading_keys_is_shown_where_it_takes_time(monkeypatch):
    for silent_seconds, shown in ((0.05, True), (60.0, False)):
        screen = Console(file=io.StringIO(), force_terminal=True)
        monkeypatch.setattr("mapet.runtime.progress.console", screen)
        monkeypatch.setattr("mapet.data.source.SILENT_SECONDS", silent_seconds)
        sample_keys(SlowImages(100))
        assert ("Reading sample keys" in screen.file.getvalue()) is shown


def test_sources_travel_to_spawned_workers(tmp_path):
    write_images(tmp_path / "folder", "train/cat/1.png train/dog/1.png val/dog/1.png")
    table = pyarrow.table({"image": pyarrow.array([png(5)], pyarrow.binary())})
    parquet.write_table(table, tmp_path / "a.parquet")
    for source in (open_source(tmp_path / "folder", "all"), open_source(tmp_path / "a.parquet", "all")):
        assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


@pytest.mark.skipif(data_root() is None, reason="real images are not here")
@pytest.mark.parametrize(("name", "train", "test"), [("cifar10", 50_000, 10_000), ("tinyimagenet64", 30_000, 10_000)])
def test_real_parquet(name, train, test):
    root = data_root()
    assert root is not None
    source = open_source(root / name, "test")
    assert len(source) == test
    assert source.classes is not None
    assert source.labels is not None
    assert source.labels.max() == len(source.classes) - 1
    assert len(open_source(root / name, "train")) == train
