import pickle

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mapet.data.decode import decode_image
from mapet.data.digits import DigitImages
from mapet.data.sources import HELD_OUT_SHARE, ImageSource, open_source, sample_key, sample_keys, split_by_content, subset
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


def test_split_depends_on_content_not_on_names_or_order(tmp_path):
    write_images(tmp_path / "a", " ".join(f"{n:02}.png" for n in range(40)))
    write_images(tmp_path / "b", " ".join(f"x{99 - n}.png" for n in range(40)))
    parts = {name: [contents(open_source(tmp_path / name, split)) for split in ("train", "test")] for name in "ab"}
    assert [sorted(part) for part in parts["a"]] == [sorted(part) for part in parts["b"]]
    assert parts["a"] != parts["b"]
    assert all(parts["a"])


def test_duplicates_fall_into_the_same_split():
    keys = sample_keys(split_by_content(subset(DigitImages(), [5, 5, 9, 9, *range(20, 60)]), "train"))
    assert sum(key == sample_key(DigitImages().read(5)) for key in keys) in (0, 2)
    assert sum(key == sample_key(DigitImages().read(9)) for key in keys) in (0, 2)


def test_empty_split_says_so(tmp_path):
    write_images(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"None of the 1 images of .* falls into the split '(test|train)'.*train/ and val/"):
        [open_source(tmp_path, split) for split in ("train", "test")]


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


def test_subset_keeps_the_order_given(tmp_path):
    source = DigitImages()
    part = subset(subset(source, [4, 2, 9]), np.array([2, 0]))
    assert contents(part) == [source.read(9), source.read(4)]
    assert labels(part) == [9, 4]
    assert part.describe(0) == "digits sample 9"
    assert part.classes == source.classes


def test_keys_by_threads_are_in_order_and_empty_where_unreadable(tmp_path, monkeypatch):
    write_images(tmp_path, " ".join(f"{n:02}.png" for n in range(30)))
    source = open_source(tmp_path, "all")
    (tmp_path / "07.png").unlink()
    expected = ["" if n == 7 else sample_key(png(n)) for n in range(30)]
    assert sample_keys(source) == expected
    monkeypatch.setattr("mapet.data.sources.SHOW_PROGRESS_FROM", 0)
    assert sample_keys(source) == expected


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
