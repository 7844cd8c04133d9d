import errno
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mapet.data.hub import HubAddress, is_saved, open_hub, open_saved
from mapet.data.source import ImageSource
from mapet.data.sources import open_source
from mapet.errors import DataError, StorageError, UnreadableImageError
from tests.data.containers import Labelled, as_dataset, in_hub_cache
from tests.data.images import png, write_images

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def samples(first: int, count: int) -> list[Labelled]:
    return [Labelled(f"{number}.png", png(number), number % 2) for number in range(first, first + count)]


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(index) for index in range(len(source))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("hf://datasets/owner/name", ("owner/name", None, None)),
        ("hf://owner/na-me.2/", ("owner/na-me.2", None, None)),
        ("hf://datasets/owner/name/config_1", ("owner/name", None, "config_1")),
        ("hf://datasets/owner/name@v1.0/a", ("owner/name", "v1.0", "a")),
        ("hf://datasets/owner/name@refs/convert/parquet", ("owner/name", "refs/convert/parquet", None)),
        ("hf://datasets/owner/name@refs/pr/3/a", ("owner/name", "refs/pr/3", "a")),
    ],
)
def test_addresses(location, address):
    assert HubAddress.parse(location) == HubAddress(*address)


@pytest.mark.parametrize(
    "location", ["hf://", "hf://name", "hf://datasets/name", "hf://datasets/a/b/c/d", "hf://a/b@", "hf://../b c", "hf://a/b@@c"]
)
def test_what_is_no_address(location):
    with pytest.raises(DataError, match=r"is no address on the Hub\. Write hf://datasets/OWNER/NAME"):
        open_source(location)


def test_what_the_cache_holds_is_used_without_a_connection(tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr(datasets.utils.logging.get_logger("datasets"), "propagate", True)
    in_hub_cache("owner/pets", {"train": samples(0, 3), "validation": samples(3, 2)}, tmp_path / "scratch", COMMIT)
    capfd.readouterr()
    train, val = open_hub("hf://owner/pets").values()
    assert contents(train) + contents(val) == [png(number) for number in range(5)]
    assert val.describe(1) == "owner/pets validation row 1 (4.png)"
    assert capfd.readouterr().err == f"The Hub is not reached: owner/pets is taken from the cache, at revision {COMMIT}.\n"
    assert caplog.messages == []
    assert datasets.utils.logging.get_verbosity() == datasets.utils.logging.WARNING


def test_only_the_revision_asked_for_is_taken_from_the_cache(tmp_path):
    location = in_hub_cache("owner/pets", {"train": samples(0, 3)}, tmp_path / "scratch", COMMIT)
    for revision in (COMMIT, COMMIT[:7]):
        assert len(open_hub(f"{location}@{revision}")["train"]) == 3
    for revision in ("v2", "main", COMMIT[:6], COMMIT[::-1]):
        with pytest.raises(DataError, match=rf"may not be '{revision}'\. Write hf://datasets/owner/pets@{COMMIT}"):
            open_hub(f"{location}@{revision}")


def test_a_configuration_that_is_not_there(tmp_path):
    location = in_hub_cache("owner/pets", {"train": samples(0, 3)}, tmp_path / "scratch")
    assert len(open_hub(f"{location}/default")["train"]) == 3
    with pytest.raises(DataError, match=r"config 'large' Available configs .*'default'.*datasets/owner/pets/CONFIG"):
        open_hub(f"{location}/large")


def test_without_connection_and_cache():
    with pytest.raises(
        DataError, match=r"Cannot open hf://owner/pets: .*`hf download owner/pets --repo-type dataset --local-dir FOLDER`"
    ):
        open_hub("hf://owner/pets")


def test_a_folder_of_that_name_is_not_taken_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "pets").mkdir(parents=True)
    (tmp_path / "owner" / "pets" / "a.png").write_bytes(png(0))
    with pytest.raises(DataError, match="Cannot open hf://datasets/owner/pets"):
        open_hub("hf://datasets/owner/pets")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DatasetNotFoundError("'a/b' is a gated dataset."), DataError, r"is a gated dataset\. Check owner.*`hf auth login`"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            StorageError,
            r"No space left on device\. To go on, make room, or set HF_HOME",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError, r"Permission denied\. To go on, make it writable"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, r"scripts are no longer supported.*hf download a/b"),
        (KeyError(), DataError, r"Cannot open hf://a/b: KeyError\."),
    ],
)
def test_what_only_a_connection_would_bring(monkeypatch, error, kind, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    with pytest.raises(kind, match=message):
        open_hub("hf://a/b")


def test_a_full_disk_while_unpacking(monkeypatch):
    def fail(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    with pytest.raises(StorageError, match="No space left"):
        open_hub("hf://a/b")


def test_splits_beyond_train_and_held_out_are_left_out_and_said(tmp_path, capsys):
    parts = {"unlabelled": samples(0, 2), "test": samples(2, 2), "train": samples(4, 2)}
    datasets.DatasetDict({name: as_dataset(part) for name, part in parts.items()}).save_to_disk(tmp_path / "d")
    capsys.readouterr()
    assert [contents(part) for part in open_saved(tmp_path / "d", "d").values()] == [[png(4), png(5)], [png(2), png(3)]]
    assert capsys.readouterr().err == "d: used are train, test; left out: unlabelled.\n"


def test_splits_without_a_training_part(tmp_path):
    parts = {"first": as_dataset(samples(0, 2)), "second": as_dataset(samples(2, 2))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"d has the splits first, second, but none called 'train'\..*save_to_disk\(FOLDER\)"):
        open_saved(tmp_path / "d", "d")
    datasets.DatasetDict({"first": parts["first"]}).save_to_disk(tmp_path / "e")
    (only,) = open_saved(tmp_path / "e", "e").values()
    assert contents(only) == [png(0), png(1)]


def test_order_of_a_saved_selection_is_kept(tmp_path):
    as_dataset(samples(0, 4)).select([3, 0, 2]).save_to_disk(tmp_path / "d")
    assert contents(open_saved(tmp_path / "d", "d")[""]) == [png(3), png(0), png(2)]


def test_rows_may_name_files_as_those_of_image_folders_do(tmp_path, monkeypatch, capfd):
    write_images(tmp_path / "photos", "cat/a.png dog/b.png")
    builder = datasets.load_dataset_builder("imagefolder", data_dir=str(tmp_path / "photos"))  # what the Hub gives for such files
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: builder)
    (source,) = open_hub("hf://owner/photos@v1").values()
    assert f"owner/photos is taken from the Hub at revision {builder.hash}.\n" in capfd.readouterr().err
    assert contents(source) == [png(0), png(1)]
    assert source.classes == ("cat", "dog")
    assert source.describe(1) == "owner/photos train row 1 (b.png)"
    (tmp_path / "photos" / "dog" / "b.png").unlink()
    with pytest.raises(UnreadableImageError, match="cannot be opened: No such file"):
        source.read(1)


def test_saved_folders_that_are_damaged_or_empty(tmp_path):
    as_dataset(samples(0, 3)).save_to_disk(tmp_path / "d")
    assert is_saved(tmp_path / "d")
    assert not is_saved(tmp_path)
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"is probably a folder of `save_to_disk`, but cannot be read \(damaged, incomplete, or without rows\)"
    ):
        open_source(tmp_path / "d")
    as_dataset([]).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match=r"incomplete, or without rows"):
        open_source(tmp_path / "e")


def test_an_empty_split(tmp_path):
    location = in_hub_cache("owner/pets", {"train": samples(0, 3), "test": []}, tmp_path / "scratch")
    with pytest.raises(DataError, match=r"Cannot open hf://datasets/owner/pets: .*\"test\" corresponds to no data\. If its files"):
        open_hub(location)


def test_labels_that_are_names(tmp_path):
    data = as_dataset(samples(0, 2)).remove_columns("label").add_column("label", ["cat", "dog"])
    data.save_to_disk(tmp_path / "d")
    assert open_source(tmp_path / "d", "all").classes == ("cat", "dog")
    data.class_encode_column("label").save_to_disk(tmp_path / "encoded")
    assert open_source(tmp_path / "encoded", "all").classes == ("cat", "dog")


def test_files_of_the_hub_that_name_classes_otherwise_are_refused(tmp_path, monkeypatch):
    """R4: `datasets` would number all by the names of the first file."""
    files = []
    for number, order in enumerate((["cat", "dog"], ["cat", "dog"], ["dog", "cat"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=order)})
        rows = {"image": [{"bytes": png(number), "path": None}], "label": ["dog"]}
        files.append(str(tmp_path / f"{number}.parquet"))
        datasets.Dataset.from_dict(rows, features=features).to_parquet(files[-1])

    def open_with(**splits: list[str]) -> dict:
        builder = datasets.load_dataset_builder("parquet", data_files=splits)
        with monkeypatch.context() as patch:
            patch.setattr("datasets.load_dataset_builder", lambda *_, **__: builder)
            return open_hub("hf://owner/pets")

    assert open_with(train=files[:1], test=files[1:2])["test"].classes == ("cat", "dog")
    for splits in ({"train": files}, {"train": files[:2], "test": files[2:]}):
        with pytest.raises(DataError, match=r"2\.parquet name the classes otherwise, .*`hf download owner/pets"):
            open_with(**splits)
    fetched = []
    monkeypatch.setattr("pyarrow.parquet.read_schema", fetched.append)
    assert open_with(train=files[:1], test=files[1:2])["test"].classes == ("cat", "dog")
    assert not fetched  # what was compared once is not fetched again
