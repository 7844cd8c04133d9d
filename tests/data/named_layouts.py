"""Tiny copies of public data sets, in the files and folders that the real ones have."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
from scipy.io import savemat

from mapet.data.named_sets import torchvision_datasets
from tests.data.images import encoded, random_image

datasets = torchvision_datasets()

# Class numbers of the images in the training part (validation behind it) and in the test part.
TRAIN, TEST = (0, 1, 2, 0, 1, 2), (2, 1, 0)
SPLIT_AT = 4  # where a set has a validation part, it begins here
NAMES = ("alpha", "beta gamma", "delta")


def jpeg(folder: Path, name: str, seed: int) -> bytes:
    content = encoded(random_image(seed), "JPEG")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return content


def jpegs(folder: Path, first: int, names: list[str]) -> list[bytes]:
    return [jpeg(folder, name, seed) for seed, name in enumerate(names, first)]


def cars(root: Path, _) -> tuple[list[bytes], list[bytes]]:
    folder, contents = root / "stanford_cars", []
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(NAMES, object)[None]})
    places = (("train", TRAIN, "devkit/cars_train_annos.mat"), ("test", TEST, "cars_test_annos_withlabels.mat"))
    for part, (split, labels, listing) in enumerate(places):
        names = [f"{number + 1:05}.jpg" for number in range(len(labels))]
        contents.append(jpegs(folder / f"cars_{split}", 50 * part, names))
        fields = [("bbox_x1", object), ("class", object), ("fname", object)]
        entries = np.empty((1, len(labels)), fields)
        for number, (label, name) in enumerate(zip(labels, names, strict=True)):
            entries[0, number] = (1, np.uint8(label + 1), name)  # numbered from 1
        savemat(folder / listing, {"annotations": entries})
    return contents[0], contents[1]


def food101(root: Path, _) -> tuple[list[bytes], list[bytes]]:
    folder, contents = root / "food-101", []
    (folder / "meta").mkdir(parents=True)
    for part, (split, labels) in enumerate((("train", TRAIN), ("test", TEST))):
        listed: dict[str, list[str]] = {}
        by_name = {}
        for number, label in enumerate(labels):
            name = f"{NAMES[label]}/{100 * part + number}"
            listed.setdefault(NAMES[label], []).append(name)
            by_name[name] = jpeg(folder / "images" / NAMES[label], f"{100 * part + number}.jpg", 50 * part + number)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        contents.append([by_name[name] for names in listed.values() for name in names])
    return contents[0], contents[1]


def aircraft(root: Path, _) -> tuple[list[bytes], list[bytes]]:
    data, contents = root / "fgvc-aircraft-2013b" / "data", []
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for part, (split, labels) in enumerate((("trainval", TRAIN), ("test", TEST))):
        names = [f"{1000 * part + number:07}" for number in range(len(labels))]
        contents.append(jpegs(data / "images", 50 * part, [f"{name}.jpg" for name in names]))
        lines = [f"{name} {NAMES[label]}\n" for name, label in zip(names, labels, strict=True)]
        (data / f"images_variant_{split}.txt").write_text("".join(lines))
    return contents[0], contents[1]


def flowers(root: Path, patch) -> tuple[list[bytes], list[bytes]]:
    folder = root / "flowers-102"
    count = len(TRAIN) + len(TEST)
    contents = jpegs(folder / "jpg", 0, [f"image_{number + 1:05}.jpg" for number in range(count)])
    savemat(folder / "imagelabels.mat", {"labels": np.array(TRAIN + TEST, np.uint8)[None] + 1})
    numbers = np.arange(1, count + 1, dtype=np.uint16)
    ids = {"trnid": numbers[:SPLIT_AT], "valid": numbers[SPLIT_AT : len(TRAIN)], "tstid": numbers[len(TRAIN) :]}
    savemat(folder / "setid.mat", {name: value[None] for name, value in ids.items()})
    known = {name: (file, md5(folder / file)) for name, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    patch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | known)
    return contents[: len(TRAIN)], contents[len(TRAIN) :]


def pets(root: Path, _) -> tuple[list[bytes], list[bytes]]:
    folder, contents = root / "oxford-iiit-pet", []
    (folder / "annotations").mkdir(parents=True)
    for part, (split, labels) in enumerate((("trainval", TRAIN), ("test", TEST))):
        names = [f"{NAMES[label].replace(' ', '_')}_{10 * part + number}" for number, label in enumerate(labels)]
        contents.append(jpegs(folder / "images", 50 * part, [f"{name}.jpg" for name in names]))
        lines = [f"{name} {label + 1} 1 1\n" for name, label in zip(names, labels, strict=True)]
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))
    return contents[0], contents[1]


def cifar10(root: Path, patch) -> tuple[list[bytes], list[bytes]]:
    files = {f"data_batch_{batch + 1}": TRAIN[batch : batch + 1 if batch < 4 else None] for batch in range(5)}
    return write_cifar(root, patch, datasets.CIFAR10, files, {"test_batch": TEST}, "labels")


def cifar100(root: Path, patch) -> tuple[list[bytes], list[bytes]]:
    return write_cifar(root, patch, datasets.CIFAR100, {"train": TRAIN}, {"test": TEST}, "fine_labels")


def write_cifar(root: Path, patch, kind, train: dict, test: dict, key: str) -> tuple[list[bytes], list[bytes]]:
    """Pickles of (n, 3072) rows, channel after channel; their MD5 takes the place of the published one."""
    folder, contents, seed = root / kind.base_folder, [], 0
    folder.mkdir(parents=True)
    for attribute, files in (("train_list", train), ("test_list", test)):
        pixels = []
        for name, labels in files.items():
            images = [np.asarray(random_image(seed + number, 32, 32)) for number in range(len(labels))]
            seed += len(labels)
            rows = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in images])
            (folder / name).write_bytes(pickle.dumps({"data": rows, key: list(labels)}))
            pixels += [image.tobytes() for image in images]
        contents.append(pixels)
        patch.setattr(kind, attribute, [[name, md5(folder / name)] for name in files])
    meta = kind.meta["filename"]
    (folder / meta).write_bytes(pickle.dumps({kind.meta["key"]: list(NAMES)}))
    patch.setattr(kind, "meta", kind.meta | {"md5": md5(folder / meta)})
    return contents[0], contents[1]


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


LAYOUTS = {
    "cars": cars,
    "food101": food101,
    "aircraft": aircraft,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "flowers": flowers,
    "pets": pets,
}
