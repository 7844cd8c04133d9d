"""What every source of images must keep: the same images in any container are the same samples, labels, classes and splits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest

from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.source import ImageSource, sample_key, sample_keys
from mapet.data.sources import open_source, open_splits
from mapet.data.views import FixedView
from tests.data import containers
from tests.data.containers import CLASSES, Labelled
from tests.data.images import png

COUNT, HELD_OUT = 40, 12
DAMAGED = 5


def samples(first: int, count: int) -> list[Labelled]:
    """Sorted by class and name, which is the order of class folders; one is no image."""
    halves = [(0, number) for number in range(first, first + count // 2)] + [
        (1, n) for n in range(first + count // 2, first + count)
    ]
    contents = {number: b"no image" if number == DAMAGED else png(number) for _, number in halves}
    return [Labelled(f"{number:03}.png", contents[number], label) for label, number in halves]


ALL = samples(0, COUNT)
TRAIN, VAL = ALL, samples(COUNT, HELD_OUT)


def train_and_val(write: Callable, ending: str) -> Callable[[Path], Path]:
    """Two files side by side."""

    def in_both(folder: Path) -> Path:
        write(folder / f"train-0000{ending}", TRAIN[:30])
        write(folder / f"train-0001{ending}", TRAIN[30:])
        write(folder / f"val{ending}", VAL)
        return folder

    return in_both


def tars_in_folders(folder: Path) -> Path:
    containers.in_tar_by_name(folder / "train" / "0.tar", TRAIN)
    containers.in_tar_by_name(folder / "val" / "0.tar", VAL)
    return folder


def folders(folder: Path) -> Path:
    containers.in_folders(folder / "train", TRAIN)
    containers.in_folders(folder / "val", VAL)
    return folder


def one_of(write: Callable, name: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, ALL)


HUB = {"train": TRAIN, "validation": VAL}
WHOLE = {
    "folder": lambda folder: containers.in_folders(folder, ALL),
    "parquet": one_of(containers.in_parquet, "a.parquet"),
    "tar": one_of(containers.in_tar, "a.tar"),
    "tar_by_name": one_of(containers.in_tar_by_name, "a.tar"),
    "csv": one_of(containers.in_csv, "images.csv"),
    "saved": lambda folder: containers.save_to_disk(containers.as_dataset(ALL, "photo", "animal"), folder / "saved"),
    "hub": lambda folder: containers.in_hub_cache("owner/whole", {"train": ALL}, folder),
}
SPLIT = {
    "folders": folders,
    "parquets": train_and_val(containers.in_parquet, ".parquet"),
    "tars": train_and_val(containers.in_tar, ".tar"),
    "tars_in_folders": tars_in_folders,
    "pattern": lambda folder: str(train_and_val(containers.in_tar, ".tar")(folder)) + "/{train-{0000..0001},val}.tar",
    "glob": lambda folder: str(train_and_val(containers.in_tar, ".tar")(folder)) + "/*.tar",
    "saved": lambda folder: containers.save_to_disk(
        datasets.DatasetDict({name: containers.as_dataset(part) for name, part in HUB.items()}), folder / "saved"
    ),
    "hub": lambda folder: containers.in_hub_cache("owner/split", HUB, folder),
    "downloaded": lambda folder: containers.in_hub_repository(folder / "repository", HUB),
}
EVERY = [*((kind, write, False) for kind, write in WHOLE.items()), *((kind, write, True) for kind, write in SPLIT.items())]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=EVERY, ids=lambda case: f"{case[0]}-{'split' if case[2] else 'whole'}")
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str | Path, bool]:
    _, write, is_split = request.param
    (tmp_path / "data").mkdir()
    return write(tmp_path / "data"), is_split


def facts(source: ImageSource) -> list[tuple[str, int]]:
    assert source.labels is not None
    return list(zip(sample_keys(source), source.labels.tolist(), strict=True))


def expected(part: list[Labelled]) -> list[tuple[str, int]]:
    return [(sample_key(sample.content), sample.label) for sample in part]


def test_container_changes_nothing(case: tuple[str | Path, bool]) -> None:
    location, is_split = case
    train, test = open_splits(location)
    assert train.classes == test.classes == CLASSES
    if is_split:
        assert facts(train) == expected(TRAIN)
        assert facts(test) == expected(VAL)
        assert facts(open_source(location, "all")) == expected([*TRAIN, *VAL])
    else:
        assert facts(open_source(location, "all")) == expected(ALL)
        held_out = {key for key, _ in expected(ALL) if int(key[:8], 16) < 0.2 * 2**32}
        assert 0 < len(held_out) < COUNT / 2
        assert facts(train) == [fact for fact in expected(ALL) if fact[0] not in held_out]
        assert facts(test) == [fact for fact in expected(ALL) if fact[0] in held_out]


def test_source_can_be_read_anywhere_and_names_its_images(case: tuple[str | Path, bool]) -> None:
    source = open_source(case[0], "all")
    everything = [sample.content for sample in ([*TRAIN, *VAL] if case[1] else ALL)]
    assert source.location == str(case[0])
    assert len(source) == len(everything)
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(source.read, range(len(source)))] == everything
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(index) for index in range(len(again))] == everything
    described = [source.describe(index) for index in range(len(source))]
    assert len({*described}) == len(source)
    assert all(f"{number:03}.png" in name for number, name in enumerate(described))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named_and_skipped(case: tuple[str | Path, bool], workers: int) -> None:
    source = open_source(case[0], "all")
    first, second = make_loader(source, ViewRenderer(FixedView(8)), [BatchItem([3, DAMAGED]), BatchItem([7])], workers)
    assert first.indices.tolist() == [3]
    assert [image.description for image in first.unreadable] == [source.describe(DAMAGED)]
    assert second.keys == [sample_key(ALL[7].content)]
