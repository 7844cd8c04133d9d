from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mapet.data.source import subset
from mapet.errors import DataError
from mapet.evaluation.classes import check_complete, check_same_classes, lost_classes
from mapet.evaluation.finetuning.protocol import FineTune
from tests.command import mapet
from tests.data.images import write_images
from tests.tiny import LOCATION, TinyImages


def folder_with(path: Path, train: str, val: str) -> str:
    for split, classes in (("train", train), ("val", val)):
        write_images(path / split, " ".join(f"{name}/{split}{number}.png" for name in classes.split() for number in range(2)))
    return str(path)


def test_the_same_classes_in_both_are_accepted(tmp_path: Path) -> None:
    train, test = FineTune().open_data(folder_with(tmp_path, "cat dog emu", "cat dog emu"))
    assert train.classes == test.classes == ("cat", "dog", "emu")


def test_a_class_folder_that_only_val_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class folder 'fox', which the training images lack"):
        FineTune().open_data(folder_with(tmp_path, "cat dog", "cat dog fox"))


def test_a_class_folder_that_val_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 3 classes have no test images in .*: dog\. Use the same class folders"):
        FineTune().open_data(folder_with(tmp_path, "cat dog emu", "cat emu"))


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    location = folder_with(tmp_path, "cat dog emu", "cat dog emu")
    shutil.rmtree(tmp_path / "train" / "dog")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog holds no images \(1 of 3 class folders"):
        FineTune().open_data(location)


def labelled(labels: list[int], classes: tuple[str, ...] | None) -> TinyImages:
    images = TinyImages(LOCATION, len(labels), seed=0)
    images.labels, images.classes = np.array(labels), classes
    return images


def test_a_listed_class_without_training_images_is_refused() -> None:
    train, test = labelled([0, 2, 2], ("cat", "dog", "emu")), labelled([0, 1, 2], ("cat", "dog", "emu"))
    with pytest.raises(DataError, match=r"1 of 3 classes have no training images in .*: dog\. Add images, or remove"):
        check_complete(train, test)


def test_class_numbers_with_a_gap_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 3 classes have no training images in .*: number 1\..*from 0 without gaps"):
        check_complete(labelled([0, 2, 2], None), labelled([0, 2], None))


def test_test_labels_that_training_lacks_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 3 classes have no training images in .*: number 2"):
        check_complete(labelled([0, 1], ("cat", "dog")), labelled([0, 1, 2], ("cat", "dog")))


def test_another_order_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"different lists of classes \(2 and 2\): in another order"):
        check_same_classes(labelled([0, 1], ("cat", "dog")), labelled([0, 1], ("dog", "cat")))
    with pytest.raises(DataError, match=r"\(2 and 3\): emu\. Use the same names in both"):
        check_same_classes(labelled([0, 1], ("cat", "dog")), labelled([0, 1], ("cat", "dog", "emu")))


def test_a_held_out_part_may_lack_a_class_by_chance(capsys) -> None:
    whole = labelled([0, 1, 2, 0, 1], ("cat", "dog", "emu"))
    check_complete(subset(whole, range(3)), subset(whole, [3, 4]))
    assert "1 of 3 classes have no test images by chance: emu" in capsys.readouterr().err


def test_a_class_whose_images_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F8: skipping must not take a class out of the training part without a word."""
    location = folder_with(tmp_path, "cat dog emu", "cat dog emu")
    for path in (tmp_path / "train" / "dog").iterdir():
        path.write_bytes(b"nothing")
    options = ("--option", "img_size=16", "--option", "patch_size=8", "--option", "depth=1", "--no-random", "--workers", "0")
    assert mapet("evaluate", "knn", "random:vit_tiny_patch16_224", *options, location, "--max-unreadable", "2") == 0
    assert "1 of 3 classes have no training images that can be read: dog." in capsys.readouterr().err
    source = labelled([0, 1, 1], None)
    assert lost_classes(source, np.array([1]), "test") == "1 of 2 classes have no test images that can be read: number 0."
    assert lost_classes(source, np.array([0, 1]), "test") == lost_classes(source, None, "test") == ""
