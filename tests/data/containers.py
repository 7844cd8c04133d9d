"""The same labelled images in everything that images can come in."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from datasets.packaged_modules.parquet.parquet import Parquet
from pyarrow import parquet

CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Labelled:
    """One image.

    Args:
        name: With its suffix.
        content: Encoded.
        label: Into CLASSES.
    """

    name: str
    content: bytes
    label: int


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def in_folders(folder: Path, samples: Sequence[Labelled]) -> Path:
    for sample in samples:
        path = folder / CLASSES[sample.label] / sample.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
    return folder


def in_parquet(path: Path, samples: Sequence[Labelled]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = pyarrow.array([sample.content for sample in samples], pyarrow.binary())
    names = [sample.name for sample in samples]
    parquet.write_table(pyarrow.table({"image": contents, "label": [s.label for s in samples], "name": names}), path)
    return list_classes(path)


def in_tar(path: Path, samples: Sequence[Labelled]) -> Path:
    """With class numbers in .cls."""
    members = [
        member
        for sample in samples
        for member in ((f"{Path(sample.name).stem}.cls", str(sample.label).encode()), (sample.name, sample.content))
    ]
    return list_classes(write_tar(path, members))


def in_tar_by_name(path: Path, samples: Sequence[Labelled]) -> Path:
    """With class names in .json."""
    members = [
        member
        for sample in samples
        for member in (
            (f"x/{sample.name}", sample.content),
            (f"x/{Path(sample.name).stem}.json", json.dumps({"label": CLASSES[sample.label], "id": 3}).encode()),
        )
    ]
    return write_tar(path, members)


def in_csv(path: Path, samples: Sequence[Labelled]) -> Path:
    in_folders(path.parent / "files", samples)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label"])
        writer.writerows((7, f"files/{CLASSES[sample.label]}/{sample.name}", CLASSES[sample.label]) for sample in samples)
    return path


def as_dataset(samples: Sequence[Labelled], image: str = "image", label: str = "label") -> datasets.Dataset:
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=[*CLASSES])})
    images = [{"bytes": sample.content, "path": sample.name} for sample in samples]
    return datasets.Dataset.from_dict({image: images, label: [sample.label for sample in samples]}, features=features)


def save_to_disk(dataset: datasets.Dataset | datasets.DatasetDict, folder: Path) -> Path:
    dataset.save_to_disk(folder)
    return folder


def in_hub_repository(folder: Path, splits: dict[str, Sequence[Labelled]]) -> Path:
    """The files of a repository as `hf download --local-dir` leaves them."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("# Cats and dogs\n")
    for split, samples in splits.items():
        as_dataset(samples).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def in_hub_cache(name: str, splits: dict[str, Sequence[Labelled]], scratch: Path, commit: str = "c0ffee" + "0" * 34) -> str:
    """As `datasets` leaves what it has fetched in its cache, which is what it then finds without a connection."""
    repository = in_hub_repository(scratch / "repository", splits)
    files = {split: [str(repository / "data" / f"{split}-00000-of-00001.parquet")] for split in splits}
    builder = Parquet(cache_dir=str(scratch / "cache"), dataset_name=name.split("/")[1], hash=commit, data_files=files)
    builder.download_and_prepare()
    place = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___") / "default" / "0.0.0" / commit
    place.parent.mkdir(parents=True)
    shutil.move(builder.cache_dir, place)
    return f"hf://datasets/{name}"


def list_classes(path: Path) -> Path:
    (path.parent / "labels.txt").write_text("\n".join(CLASSES))
    return path
