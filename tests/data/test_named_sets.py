from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.data.decode import decode_image
from mapet.data.named_sets import NAMED_SETS, is_named_set, named_location, open_named, torchvision_datasets
from mapet.data.sources import absolute_location, open_source, open_splits
from mapet.errors import DataError, StorageError
from tests.data.named_layouts import LAYOUTS, NAMES, TEST, TRAIN


def test_every_named_set_has_a_layout_here() -> None:
    assert LAYOUTS.keys() == NAMED_SETS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_parts_are_read_as_they_lie_on_disk(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    written = LAYOUTS[name](tmp_path, monkeypatch)
    labels = [list(TRAIN), list(TEST)]
    if name == "food101":  # lists its images class by class
        labels = [sorted(TRAIN), sorted(TEST, key=TEST.index)]
    for part, contents, numbers in zip(open_named(f"{name}:{tmp_path}"), written, labels, strict=True):
        assert len(part) == len(contents)
        assert part.labels.tolist() == numbers
        for index, content in enumerate(contents):
            if name.startswith("cifar"):
                assert np.asarray(decode_image(part.read(index))).tobytes() == content
            else:
                assert part.read(index) == content
                assert Path(part.describe(index)).read_bytes() == content
        assert part.metric == NAMED_SETS[name].metric
    if name != "flowers":  # torchvision knows its names by heart
        assert [title.lower() for title in part.classes] == [*NAMES]
    said = " ".join(capsys.readouterr().err.split())
    assert f"{name} has {len(part.classes)} classes, 6 training and 3 test images; published are" in said


@pytest.mark.parametrize("name", ["food101", "cifar10"])
def test_a_location_opens_them(name: str, tmp_path: Path, monkeypatch) -> None:
    LAYOUTS[name](tmp_path / "sets", monkeypatch)
    monkeypatch.chdir(tmp_path)
    location = f"{name}:sets"
    assert [len(part) for part in open_splits(location)] == [6, 3]
    assert [len(open_source(location, split)) for split in ("train", "test", "all")] == [6, 3, 9]
    assert open_source(location, "test").metric == NAMED_SETS[name].metric
    assert absolute_location(location) == named_location(name, tmp_path / "sets")
    assert is_named_set(location)
    assert not is_named_set(name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_missing_is_said_with_the_layout_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        open_named(f"{name}:{tmp_path}")
    message, known = str(refusal.value), NAMED_SETS[name]
    assert f"{known.title} ('{name}') cannot be opened in {tmp_path}" in message
    assert known.layout in message
    assert known.origin in message
    assert ("--download` fetches it" in message) == (name != "cars")
    assert "download=True" not in message


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path: Path, monkeypatch) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    LAYOUTS["cifar10"](tmp_path, monkeypatch)
    for file in sorted((tmp_path / "cifar-10-batches-py").iterdir()):
        whole = file.read_bytes()
        file.write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(DataError, match="cannot be opened"):
            open_named(f"cifar10:{tmp_path}")
        file.write_bytes(whole)
    assert not (tmp_path / "ran").exists()
    assert len(open_named(f"cifar10:{tmp_path}")[0]) == 6


def test_a_changed_list_of_flowers_is_refused(tmp_path: Path, monkeypatch) -> None:
    LAYOUTS["flowers"](tmp_path, monkeypatch)
    with (tmp_path / "flowers-102" / "setid.mat").open("ab") as file:
        file.write(b"0")
    with pytest.raises(DataError, match="not found or corrupted"):
        open_named(f"flowers:{tmp_path}")


@pytest.mark.parametrize("file", ["food-101/meta/train.json", "food-101/meta/test.json"])
def test_damaged_lists_are_refused(file: str, tmp_path: Path, monkeypatch) -> None:
    LAYOUTS["food101"](tmp_path, monkeypatch)
    for content in ("{", "[]", "{}"):
        (tmp_path / file).write_text(content)
        with pytest.raises(DataError, match=r"Expected in ROOT:\n  food-101/images"):
            open_named(f"food101:{tmp_path}")


def test_an_image_that_is_not_there_is_named_when_it_is_read(tmp_path: Path, monkeypatch) -> None:
    LAYOUTS["pets"](tmp_path, monkeypatch)
    train, _ = open_named(f"pets:{tmp_path}")
    Path(train.describe(2)).unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        train.read(2)


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set called 'foods101'\. Did you mean 'food101'"):
        open_named(f"foods101:{tmp_path}")
    with pytest.raises(DataError, match="Write food101:ROOT"):
        open_named("food101:")


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch) -> None:
    def fail(self) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_datasets().FGVCAircraft, "_download", fail)
    with pytest.raises(StorageError, match=r"cannot be fetched to .*: no route to host"):
        open_named(f"aircraft:{tmp_path}", download=True)
    with pytest.raises(DataError, match="cannot be opened"):
        open_named(f"cars:{tmp_path}", download=True)


def test_what_is_missing_is_fetched_where_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    fetched = []

    def fetch(self) -> None:
        fetched.append(self.root)
        if len(fetched) == 1:
            LAYOUTS["aircraft"](tmp_path, monkeypatch)
        print("Extracting")

    monkeypatch.setattr(torchvision_datasets().FGVCAircraft, "_download", fetch)
    with pytest.raises(DataError, match="cannot be opened"):
        open_named(f"aircraft:{tmp_path}")
    assert fetched == []
    assert [len(part) for part in open_named(f"aircraft:{tmp_path}", download=True)] == [6, 3]
    assert fetched == [tmp_path]
    assert capsys.readouterr().out == ""


def test_pixels_come_back_bit_for_bit(tmp_path: Path, monkeypatch) -> None:
    (first, *_), _ = LAYOUTS["cifar100"](tmp_path, monkeypatch)
    train, _ = open_named(f"cifar100:{tmp_path}")
    assert train.read(0) == b"P6 32 32 255\n" + first
    assert decode_image(train.read(0)).tobytes() == Image.frombytes("RGB", (32, 32), first).tobytes()
