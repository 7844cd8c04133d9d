import hashlib
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mapet.data import parquet as parquet_module
from mapet.data.parquet import ParquetImages
from mapet.data.source import ImageSource
from mapet.data.sources import open_source, open_splits
from mapet.errors import DataError, StorageError, UnreadableImageError
from tests.data.images import png, write_images


def write(path: Path, **columns) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def images(first: int, count: int) -> pyarrow.Array:
    return pyarrow.array([png(seed) for seed in range(first, first + count)], pyarrow.binary())


def test_rows_of_several_files_in_order(tmp_path, capfd):
    first = write(tmp_path / "a.parquet", image=images(0, 3), label=[2, 0, 1], name=["x.png", "y.png", "z.png"], size=[1, 1, 1])
    second = write(tmp_path / "b.parquet", image=images(3, 2), label=[0, 0], name=["u.png", None], size=[1, 1])
    (tmp_path / "labels.txt").write_text("cat\nn02 dog, hound\neel\n")
    source = ParquetImages([first, second])
    assert [source.read(index) for index in range(len(source))] == [png(seed) for seed in range(5)]
    assert source.describe(2) == "a.parquet row 2 (z.png)"
    assert source.describe(3) == "b.parquet row 0 (u.png)"
    assert source.describe(4) == "b.parquet row 1"
    assert source.classes == ("cat", "n02 dog, hound", "eel")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 1, 0, 0]
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def test_struct_of_bytes_and_path_as_on_the_hub(tmp_path):
    rows = pyarrow.array([{"bytes": png(0), "path": "a.png"}, {"bytes": None, "path": "b.png"}])
    source = ParquetImages([write(tmp_path / "a.parquet", img=rows)])
    assert source.read(0) == png(0)
    assert source.labels is None
    with pytest.raises(UnreadableImageError, match="cannot be opened: No such file"):
        source.read(1)


def test_the_hubs_class_names_are_used(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"image": [{"bytes": png(0), "path": None}], "label": [1]}, features=features)
    data.to_parquet(tmp_path / "hub.parquet")
    source = ParquetImages([tmp_path / "hub.parquet"])
    assert source.classes == ("no", "yes")
    assert source.read(0) == png(0)


def test_all_labels_missing_means_unlabelled(tmp_path):
    assert ParquetImages([write(tmp_path / "a.parquet", image=images(0, 2), label=[-1, -1])]).labels is None
    nulls = pyarrow.array([None, None], pyarrow.int64())
    assert ParquetImages([write(tmp_path / "b.parquet", image=images(0, 2), label=nulls)]).labels is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": images(0, 1), "label": [0]}, r"no image column: .*image or img .*found picture \(binary\), label \(int64\)"),
        ({"image": ["a.png"]}, r"column 'image' .* must hold encoded images .*found image \(string\)"),
        ({"image": images(0, 1), "label": [[0]]}, r"column 'label' .* must hold class numbers from 0, or class names; .*list"),
        ({"image": images(0, 2), "label": [0, -1]}, r"row 1 has no label \(-1\); allowed: 0 or more"),
        ({"image": images(0, 2), "label": [0, None]}, r"row 1 has no label \(-1\); allowed: 0 or more"),
        ({"image": images(0, 0)}, "holds no rows"),
    ],
    ids=["no_image", "strings", "list_labels", "negative", "null", "empty"],
)
def test_columns_that_do_not_fit(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        ParquetImages([write(tmp_path / "a.parquet", **columns)])


def test_more_labels_than_class_names(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="row 0 has the label 2; allowed: 0 to 1, as there are 2 class names"):
        ParquetImages([write(tmp_path / "a.parquet", image=images(0, 1), label=[2])])


@pytest.mark.parametrize("end", [0, 10, 150, -1])
def test_file_cut_short(tmp_path, end):
    path = write(tmp_path / "a.parquet", image=images(0, 3))
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match="no readable Parquet file"):
        ParquetImages([path])


def test_damage_inside_and_files_that_differ(tmp_path):
    path = write(tmp_path / "a.parquet", image=images(0, 3))
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match="no readable Parquet file"):
        ParquetImages([path])
    files = [write(tmp_path / "b.parquet", image=images(0, 1), label=[0]), write(tmp_path / "c.parquet", image=images(0, 1))]
    with pytest.raises(DataError, match=r"b\.parquet has the column 'label' and c\.parquet has none"):
        ParquetImages(files)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="set HF_DATASETS_CACHE to another folder"):
        ParquetImages([write(tmp_path / "a.parquet", image=images(0, 1))])


def test_any_one_column_of_the_hubs_types_is_found(tmp_path):
    rows = [{"bytes": png(0), "path": "photos/a.png"}]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"photo": rows, "kind": [1]}, features=features).to_parquet(tmp_path / "a.parquet")
    source = ParquetImages([tmp_path / "a.parquet"])
    assert source.read(0) == png(0)
    assert source.describe(0) == "a.parquet row 0 (a.png)"
    assert source.labels is not None
    assert (source.classes, source.labels.tolist()) == (("no", "yes"), [1])


def test_two_columns_of_images_are_not_chosen_from(tmp_path):
    features = datasets.Features({"before": datasets.Image(), "after": datasets.Image()})
    rows = [{"bytes": png(0), "path": None}]
    datasets.Dataset.from_dict({"before": rows, "after": rows}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no image column: .*one column of the Hub's type Image.*before.*after"):
        ParquetImages([tmp_path / "a.parquet"])


def paths(*names: str) -> pyarrow.Array:
    rows = [{"bytes": None, "path": name} for name in names]
    return pyarrow.array(rows, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))


def test_rows_without_bytes_are_read_from_files_inside_the_folder(tmp_path):
    """R24."""
    write_images(tmp_path, "data/photos/a.png data/b.png outside.png")
    inside = [str(tmp_path / "data" / "b.png"), "photos/../b.png", "photos/a.png"]
    source = ParquetImages([write(tmp_path / "data" / "a.parquet", image=paths(*inside))])
    assert [source.read(index) for index in range(3)] == [png(1), png(1), png(0)]
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "outside.png")
    outside = ["photos/a.png", "../outside.png", str(tmp_path / "outside.png"), "link.png", "a\0b.png"]
    source = ParquetImages([write(tmp_path / "data" / "b.parquet", image=paths(*outside))])
    for index in range(1, 4):
        with pytest.raises(UnreadableImageError, match=r"holds no bytes but the path '.*', which leads out of .*data"):
            source.read(index)
    with pytest.raises(UnreadableImageError, match="cannot be followed"):
        source.read(4)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (paths("no.png", "a.png"), r"only paths, and of the first, 'no\.png', the file cannot be opened: No such file"),
        (paths("../b.png"), r"only paths, and of the first, .* leads out of"),
        (paths("pipe.png"), r"only paths, and of the first, .* named pipe"),
        (pyarrow.array([None, None], pyarrow.binary()), r"the column 'image' holds no bytes in any of its 2 rows\. Write"),
        (pyarrow.array([{"bytes": None}], pyarrow.struct([("bytes", pyarrow.large_binary())])), r"in any of its 1 rows\. Write"),
    ],
)
def test_tables_without_any_image_are_refused_with_the_reason(tmp_path, image, reason):
    """R24."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=reason):
        ParquetImages([write(tmp_path / "a.parquet", image=image)])


@pytest.mark.parametrize(
    "kind",
    [
        *(getattr(pyarrow, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *(pyarrow.float16(), pyarrow.float32(), pyarrow.float64(), pyarrow.bool_(), pyarrow.decimal128(5, 1)),
        *(pyarrow.dictionary(pyarrow.int8(), pyarrow.int64()), pyarrow.string(), pyarrow.large_string()),
        pyarrow.dictionary(pyarrow.uint8(), pyarrow.string()),
    ],
    ids=str,
)
def test_labels_of_any_type_of_number(tmp_path, kind):
    """R3."""
    is_text = "string" in str(kind)

    def column(*values: int | None) -> pyarrow.Array:
        cells = [None if value is None else str(value) if is_text else value for value in values]
        if pyarrow.types.is_dictionary(kind):
            return pyarrow.array(cells, kind.value_type).dictionary_encode().cast(kind)
        if pyarrow.types.is_decimal(kind):
            return pyarrow.array(cells, pyarrow.int64()).cast(pyarrow.decimal128(20, 1)).cast(kind)
        return pyarrow.array(cells, pyarrow.int64() if not is_text else kind).cast(kind)

    source = ParquetImages([write(tmp_path / "a.parquet", image=images(0, 3), label=column(1, 0, 1))])
    assert source.labels is not None
    assert (source.labels.dtype, source.labels.tolist(), source.classes) == (np.int64, [1, 0, 1], None)
    with pytest.raises(DataError, match=r"b\.parquet row 1 has no label \(-1\)"):
        ParquetImages([write(tmp_path / "b.parquet", image=images(0, 2), label=column(1, None))])
    assert ParquetImages([write(tmp_path / "c.parquet", image=images(0, 2), label=column(None, None))]).labels is None


@pytest.mark.parametrize(
    "labels", [pyarrow.array([2**63], pyarrow.uint64()), [0.5], [float("inf")], pyarrow.array([1.5]).cast(pyarrow.decimal128(5, 1))]
)
def test_numbers_that_are_no_class(tmp_path, labels):
    """R3."""
    with pytest.raises(DataError, match=r"The labels of a\.parquet are no class numbers from 0 up"):
        ParquetImages([write(tmp_path / "a.parquet", image=images(0, 1), label=labels)])


def test_not_a_number_is_no_label(tmp_path):
    """R3."""
    assert ParquetImages([write(tmp_path / "a.parquet", image=images(0, 2), label=[float("nan"), None])]).labels is None


def shard(path: Path, names: list[str], texts: list[str], first: int) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = [{"bytes": png(first + row), "path": None} for row in range(len(texts))]
    datasets.Dataset.from_dict({"image": rows, "label": texts}, features=features).to_parquet(path)
    return path


def named(source: ImageSource) -> list[str]:
    assert source.labels is not None
    assert source.classes is not None
    return [source.classes[label] for label in source.labels]


@pytest.mark.parametrize("second", [["dog", "cat"], ["eel", "dog", "cat"], ["dog"]], ids=len)
def test_labels_of_shards_are_paired_by_name(tmp_path, second):
    """R4: the metadata of every file count."""
    texts = ["dog", *(["cat"] if "cat" in second else [])]
    files = [shard(tmp_path / "a.parquet", ["cat", "dog"], ["cat", "dog"], 0), shard(tmp_path / "b.parquet", second, texts, 2)]
    source = ParquetImages(files)
    assert named(source) == ["cat", "dog", *texts]
    assert source.classes[:2] == ("cat", "dog")


def test_test_labels_are_numbered_by_the_names_of_the_training_part(tmp_path):
    """R4."""
    shard(tmp_path / "train-0.parquet", ["dog", "cat"], ["cat", "dog"], 0)
    shard(tmp_path / "test-0.parquet", ["cat", "dog", "eel"], ["cat", "dog"], 2)
    train, test = open_splits(tmp_path)
    assert train.classes == test.classes == ("dog", "cat")
    assert named(train) == named(test) == named(open_source(tmp_path, "all"))[2:] == ["cat", "dog"]
    shard(tmp_path / "test-0.parquet", ["cat", "dog", "eel"], ["cat", "eel"], 2)
    with pytest.raises(
        DataError, match=r"test-0\.parquet row 1 is labelled 'eel', which is none of the 2 classes known \(dog, cat\)"
    ):
        open_splits(tmp_path)


def test_shards_with_other_types_of_columns(tmp_path):
    """R4: every file is read by its own columns."""
    rows = pyarrow.array([{"bytes": png(2), "path": "x.png"}])
    files = [write(tmp_path / "a.parquet", image=images(0, 2), label=pyarrow.array([0, 1], pyarrow.uint8()))]
    files.append(write(tmp_path / "b.parquet", label=[1], img=rows))
    source = ParquetImages(files)
    assert [source.read(index) for index in range(3)] == [png(0), png(1), png(2)]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1]
    files.append(write(tmp_path / "c.parquet", image=images(3, 1), label=["dog"]))
    with pytest.raises(DataError, match=r"Only one of a\.parquet and c\.parquet names the classes of its labels"):
        ParquetImages(files)
    files[-1] = write(tmp_path / "d.parquet", image=pyarrow.array([], pyarrow.binary()), label=pyarrow.array([], pyarrow.int64()))
    assert len(ParquetImages(files)) == 3, "a file without rows counts for nothing"


def test_names_of_classes_as_text(tmp_path):
    """R4: of several files, all texts count."""
    files = [
        write(tmp_path / f"{name}.parquet", image=images(0, 2), label=labels)
        for name, labels in (("a", ["dog", "eel"]), ("b", ["cat", "dog"]))
    ]
    source = ParquetImages(files)
    assert source.classes == ("cat", "dog", "eel")
    assert named(source) == ["dog", "eel", "cat", "dog"]


def test_a_file_rewritten_with_the_same_size_and_time_is_another_file(tmp_path):
    """R5, F14."""
    path, sizes = tmp_path / "a.parquet", set()
    for first in (0, 2, 4):
        padded = [png(seed).ljust(1000, b"\0") for seed in (first, first + 1)]
        table = pyarrow.table({"image": pyarrow.array(padded, pyarrow.binary())})
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
        os.utime(path, (1.7e9, 1.7e9))
        sizes.add(path.stat().st_size)
        for _ in range(2):
            source = ParquetImages([path])
            assert all(source.read(index).startswith(png(first + index)) for index in range(2))
    assert len(sizes) == 1


def test_the_hash_of_a_settled_file_is_kept(tmp_path, monkeypatch):
    """R5: what is kept is believed for the same inode, size and times, and holds for a changed file no more."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.parquet", image=images(0, 2))
    ParquetImages([path])
    assert not (tmp_path / "cache" / "mapet-parquet" / "hashes").exists(), "it changed just now, and might again"
    monkeypatch.setattr(parquet_module, "_SETTLED_SECONDS", -60.0)
    ParquetImages([path])
    (kept,) = (tmp_path / "cache" / "mapet-parquet" / "hashes").iterdir()
    assert kept.read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    write(path, image=images(7, 2))
    assert ParquetImages([path]).read(0) == png(7)


def test_r5_f14_a_kept_hash_is_not_believed_for_another_content_of_the_same_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet_module, "_SETTLED_SECONDS", -60.0)
    found, sizes = [], set()
    for order in (1, -1):
        path = write(tmp_path / "a.parquet", image=images(0, 2)[::order])
        os.utime(path, (1.7e9, 1.7e9))
        sizes.add(path.stat().st_size)
        found.append(ParquetImages([path]).read(0))
    assert len(sizes) == 1
    assert found == [png(0), png(1)]


def test_a_named_pipe_is_refused(tmp_path):
    """F7."""
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is no readable Parquet file .*it is a named pipe"):
        open_source(tmp_path / "a.parquet")


def test_a_column_of_splits(tmp_path):
    path = write(tmp_path / "a.parquet", image=images(0, 4), label=[0, 1, 1, 0], split=["test", "train", "Training", "train"])
    train, test = open_splits(path)
    assert [train.read(index) for index in range(3)] == [png(1), png(2), png(3)]
    assert (test.read(0), test.describe(0)) == (png(0), "a.parquet row 0")
    assert train.labels is not None
    assert train.labels.tolist() == [1, 1, 0]
    with pytest.raises(DataError, match=r"a\.parquet row 1 has the split 'fold 1'; the column 'split' may hold train"):
        open_splits(write(tmp_path / "b.parquet", image=images(0, 2), split=["train", "fold 1"]).rename(tmp_path / "a.parquet"))


def test_odd_metadata_of_the_hub(tmp_path):
    table = pyarrow.table({"image": images(0, 1)}).replace_schema_metadata({"huggingface": '{"info": {"features": {"image": 3}}}'})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"The Hub's metadata in .* cannot be read"):
        ParquetImages([tmp_path / "a.parquet"])


def test_a_damaged_copy_in_the_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "a.parquet", image=images(0, 2))
    ParquetImages([file])
    (copy,) = (tmp_path / "cache").rglob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:40])
    with pytest.raises(DataError, match=r"\.arrow, which was unpacked before, is damaged: .* Remove it; it is made again"):
        ParquetImages([file])


def test_a_file_that_changes_while_it_is_unpacked_leaves_no_copy(tmp_path, monkeypatch):
    """The copy is named after the bytes that were hashed, so that it must hold these."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "a.parquet", image=images(0, 2))
    batches = parquet_module._batches

    def change_meanwhile(*arguments):
        os.utime(file, (0, 0))
        return batches(*arguments)

    monkeypatch.setattr(parquet_module, "_batches", change_meanwhile)
    with pytest.raises(DataError, match=r"a\.parquet was changed while it was read"):
        ParquetImages([file])
    assert not [*(tmp_path / "cache").rglob("*.arrow")]


def test_names_that_are_no_utf8_are_shown_with_replacements(tmp_path):
    """Found by `./dev fuzz`: such a name, in a damaged file, ended in a foreign error where the row was described."""
    bad = pyarrow.array([b"\xff.png", b"b.png"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    struct = pyarrow.StructArray.from_arrays([pyarrow.array([png(0), png(1)]), bad], ["bytes", "path"])
    source = ParquetImages([write(tmp_path / "a.parquet", image=struct)])
    assert "\ufffd.png" in source.describe(0)
    assert source.read(0) == png(0)
    assert "b.png" in source.describe(1)
