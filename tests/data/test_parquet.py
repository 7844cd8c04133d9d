from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mapet.data.parquet import ParquetImages
from mapet.errors import DataError, StorageError, UnreadableImageError
from tests.data.images import png


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
    with pytest.raises(UnreadableImageError, match="holds no bytes"):
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
        ({"image": images(0, 1), "label": ["cat"]}, r"column 'label' .* must hold integers .*label \(string\)"),
        ({"image": images(0, 2), "label": [0, -1]}, r"row 1 has no label \(-1\); allowed: 0 or more"),
        ({"image": images(0, 2), "label": [0, None]}, r"row 1 has no label \(-1\); allowed: 0 or more"),
        ({"image": images(0, 0)}, "holds no rows"),
    ],
    ids=["no_image", "strings", "string_labels", "negative", "null", "empty"],
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
    with pytest.raises(DataError, match="cannot be read together"):
        ParquetImages([path])
    files = [write(tmp_path / "b.parquet", image=images(0, 1), label=[0]), write(tmp_path / "c.parquet", image=images(0, 1))]
    with pytest.raises(DataError, match="cannot be read together"):
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


def test_parquet_does_not_lead_to_other_files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    rows = pyarrow.array(
        [{"bytes": None, "path": str(tmp_path / "a.png")}],
        pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    )
    with pytest.raises(UnreadableImageError, match="holds no bytes"):
        ParquetImages([write(tmp_path / "a.parquet", img=rows)]).read(0)
