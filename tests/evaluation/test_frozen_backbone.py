"""Which labelled images can be judged with, and what is said of those that cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source, open_splits
from mapet.errors import DataError
from mapet.evaluation import frozen_backbone as module
from mapet.evaluation.frozen_backbone import FrozenBackbone, check_labels
from mapet.evaluation.presets import protocol_of
from mapet.models.spec import BackboneSpec
from tests.data.images import write_images


@pytest.mark.parametrize("protocol", ["knn", "finetune", "fewshot:10", "tokens"])
def test_one_class_folder_is_not_called_unsorted(tmp_path: Path, protocol: str) -> None:
    write_images(tmp_path, " ".join(f"{part}/box/{number}.png" for part in ("train", "val") for number in "12"))
    with pytest.raises(
        DataError, match=r"at least two classes; .* has one class folder \('box'\)\. Add folders of other"
    ) as refused:
        protocol_of(protocol).open_data(str(tmp_path))
    assert "no labels" not in str(refused.value)
    assert "Sort the images" not in str(refused.value)


def test_one_class_folder_to_be_judged_on_is_enough_for_none(tmp_path: Path) -> None:
    write_images(tmp_path, "train/box/1.png train/cup/2.png val/box/3.png")
    train, test = open_splits(str(tmp_path))
    check_labels(train)
    with pytest.raises(DataError, match=r"has one class \('box'\)\. Add images of other classes\."):
        check_labels(test)


def test_images_in_no_folder_are_to_be_sorted(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png val/2.png")
    with pytest.raises(DataError, match=r"has no labels\. Sort the images into one folder a class"):
        check_labels(open_source(tmp_path, "train"))


@pytest.mark.parametrize(("labels", "classes"), [([7, 7], None), ([-1, -1], ("cat", "dog")), ([3, 3], ("cat", "dog"))])
def test_a_class_without_a_name_is_not_named(labels: list[int], classes: tuple[str, ...] | None) -> None:
    source = SimpleNamespace(location="photos", labels=np.array(labels), classes=classes)
    with pytest.raises(DataError, match=r"photos has one class\. Add images"):
        check_labels(source)  # type: ignore[arg-type]


def test_broken_images_of_the_first_batch_are_not_said_to_be_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(
        tmp_path, " ".join(f"{part}/{kind}/{n}.png" for part in ("train", "val") for kind in ("cat", "dog") for n in "123")
    )
    for part in ("train", "val"):
        (tmp_path / part / "cat" / "2.png").write_bytes(b"no image")
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    spec = BackboneSpec("tiny", {}, 16, (0.5,) * 3, (0.5,) * 3, 0)
    splits, common = open_splits(str(tmp_path)), {"device": torch.device("cpu"), "workers": 0}
    evaluated = FrozenBackbone("pre-trained", torch.nn.Identity(), spec, *splits, unreadable=UnreadableImages(), **common)  # type: ignore[arg-type]
    monkeypatch.setattr(evaluated, "features", lambda images: (images.flatten(1).float(),) * 2)
    seen = r"cat/2.png(.|\n)*--max-unreadable N\.\nOnly 2 of 6 training images were read; .* in other parts\.$"
    with pytest.raises(DataError, match=seen):
        _ = evaluated.train_features
