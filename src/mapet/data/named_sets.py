"""Public data sets by name, addressed as NAME:ROOT (`food101:/data`), laid out below ROOT as torchvision's loaders expect them.

torchvision reads what belongs to the format: lists of images, labels, classes, checksums. Images stay encoded, as in every source.
Nothing is downloaded without `--download`. Pickles (CIFAR) are opened only after torchvision has checked their MD5.

The metric is that of Kornblith et al., "Do Better ImageNet Models Transfer Better?" (CVPR 2019, Table 1), which SimCLR and BYOL
follow: mean per class for Aircraft, Flowers and Pets, top-1 for the others. As there, images of training and validation parts are
the training images, and the official test part is the test images.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from mapet.data.tree import read_file
from mapet.errors import DataError, StorageError, nearest
from mapet.runtime.printable import on_one_line
from mapet.runtime.progress import say

_SEPARATOR = ":"
TOP1, PER_CLASS = "top1", "mean_per_class"

# The parts of a split: torchvision's data sets, one behind the other.
Parts = list[Any]


@dataclass(frozen=True)
class NamedSet:
    """A data set that has a name.

    Args:
        title: As people write it.
        metric: The figure that is reported by convention.
        open: From (root, download) to torchvision's data sets of the training and of the test split.
        layout: What lies below ROOT.
        origin: Where to get it.
        counts: Published numbers of classes, training and test images.
        downloads: Whether torchvision still can.
    """

    title: str
    metric: str
    open: Callable[[Path, bool], tuple[Parts, Parts]]
    layout: str
    origin: str
    counts: tuple[int, int, int]
    downloads: bool = True


class NamedImages(ABC):
    """One split of a named set.

    Args:
        location: What the user gave, for messages.
        metric: The figure that is reported by convention.
        classes: Class names.
        labels: (n,) int64.
    """

    def __init__(self, location: str, metric: str, classes: Sequence[str], labels: Sequence[int]) -> None:
        self.location, self.metric = location, metric
        self.classes: tuple[str, ...] | None = tuple(classes)
        self.labels: np.ndarray | None = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels) if self.labels is not None else 0

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded content of one image."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Shown to the user."""


class ListedFiles(NamedImages):
    """Images in files; the rest as `NamedImages`."""

    def __init__(self, files: Sequence[str], *facts: Any) -> None:
        super().__init__(*facts)
        self._files = [*map(Path, files)]

    def read(self, index: int) -> bytes:
        """The content of one file."""
        return read_file(self._files[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return on_one_line(self._files[index])


class PixelArray(NamedImages):
    """Images that come as pixels, (n, h, w, 3) uint8; handed on as binary PPM, whose bytes depend on no encoder's version."""

    def __init__(self, pixels: np.ndarray, *facts: Any) -> None:
        super().__init__(*facts)
        self._pixels = pixels

    def read(self, index: int) -> bytes:
        """One image as a PPM file."""
        height, width, _ = self._pixels[index].shape
        return f"P6 {width} {height} 255\n".encode() + self._pixels[index].tobytes()

    def describe(self, index: int) -> str:
        """Its place in the data set."""
        return f"{self.location} image {index}"


def is_named_set(location: str | Path) -> bool:
    """Whether a location is NAME:ROOT of one of these."""
    return str(location).partition(_SEPARATOR)[0] in NAMED_SETS and _SEPARATOR in str(location)


def named_location(name: str, root: str | Path) -> str:
    """NAME:ROOT, with ROOT made absolute."""
    return f"{name}{_SEPARATOR}{Path(root).absolute()}"


def absolute_named(location: str) -> str:
    """`location`, its ROOT made absolute."""
    name, _, root = location.partition(_SEPARATOR)
    return named_location(name, root)


def open_named(location: str, *, download: bool = False) -> tuple[NamedImages, NamedImages]:
    """The training and the test part of the set at NAME:ROOT.

    Args:
        location: NAME:ROOT.
        download: Fetch it to ROOT first, where it is not there yet; torchvision checks what it fetches.

    Raises:
        DataError: It is missing or incomplete: the message has the layout and the source.
    """
    name, _, root = location.partition(_SEPARATOR)
    if name not in NAMED_SETS:
        raise DataError(f"There is no data set called '{name}'. {nearest(name, NAMED_SETS)}")
    named_set = NAMED_SETS[name]
    if not root:
        raise DataError(f"'{location}' has no folder of the data set. Write {name}{_SEPARATOR}ROOT. {_layout(named_set)}")
    try:
        train, test = named_set.open(Path(root), download and named_set.downloads)
    except Exception as error:  # of damaged lists and labels, nearly any may come
        raise _unusable(named_set, name, Path(root), error, download) from error
    opened = tuple(_source(parts, location, named_set.metric) for parts in (train, test))
    _compare_counts(named_set, name, *opened)
    return opened[0], opened[1]


def _unusable(named_set: NamedSet, name: str, root: Path, error: Exception, download: bool) -> DataError | StorageError:
    if download and named_set.downloads and isinstance(error, OSError):
        return StorageError(f"{named_set.title} cannot be fetched to {root}: {error}. {_layout(named_set)}")
    hint = f" `mapet evaluate transfer ... --root {root} --download` fetches it." if named_set.downloads else ""
    reason = (str(error) or type(error).__name__).partition(" You can use")[0].rstrip(".")
    return DataError(f"{named_set.title} ('{name}') cannot be opened in {root}: {reason}. {_layout(named_set)}{hint}")


def _layout(named_set: NamedSet) -> str:
    return f"Expected in ROOT:\n{named_set.layout}\nWhere to get it: {named_set.origin}."


def _source(parts: Parts, location: str, metric: str) -> NamedImages:
    """The images of several parts, one behind the other."""
    facts = (location, metric, parts[0].classes)
    if hasattr(parts[0], "data"):
        return PixelArray(
            np.concatenate([part.data for part in parts]), *facts, [label for part in parts for label in part.targets]
        )
    listed = [_path_and_label(part, index) for part in parts for index in range(len(part))]
    return ListedFiles([path for path, _ in listed], *facts, [label for _, label in listed])


def _path_and_label(part: Any, index: int) -> tuple[str, int]:
    """Data sets were opened with `str` as their loader; only Pets has none."""
    return (part._images[index], part._labels[index]) if hasattr(part, "_images") else part[index]


def _compare_counts(named_set: NamedSet, name: str, train: NamedImages, test: NamedImages) -> None:
    actual_counts = (len(train.classes or ()), len(train), len(test))
    if not len(train) or not len(test):
        raise DataError(f"{named_set.title} in {train.location} lists no images. {_layout(named_set)}")
    if actual_counts != named_set.counts:
        words = ["{:,} classes, {:,} training and {:,} test images".format(*counts) for counts in (actual_counts, named_set.counts)]
        say(f"{name} has {words[0]}; published are {words[1]}: figures are not comparable with published ones.")


def torchvision_datasets() -> Any:
    """torchvision.datasets, made importable first."""
    importlib.import_module("mapet.compat")
    return importlib.import_module("torchvision.datasets")


def _open(
    kind: str, train: Sequence[dict[str, Any]], test: dict[str, Any], **options: Any
) -> Callable[[Path, bool], tuple[Parts, Parts]]:
    """An opener of one of torchvision's classes, by the argument that selects its split."""

    def opener(root: Path, download: bool) -> tuple[Parts, Parts]:
        build = getattr(torchvision_datasets(), kind)
        with redirect_stdout(StringIO()):  # "Files already downloaded and verified"
            return [build(root, **split, download=download, **options) for split in train], [build(root, **test, **options)]

    return opener


_CIFAR_ORIGIN = "https://www.cs.toronto.edu/~kriz/cifar.html (the version for Python)"

NAMED_SETS: dict[str, NamedSet] = {
    "cars": NamedSet(
        "Stanford Cars",
        TOP1,
        _open("StanfordCars", [{"split": "train"}], {"split": "test"}, loader=str),
        "  stanford_cars/cars_train/00001.jpg ...\n  stanford_cars/cars_test/00001.jpg ...\n"
        "  stanford_cars/devkit/cars_meta.mat, cars_train_annos.mat\n  stanford_cars/cars_test_annos_withlabels.mat",
        "its own site is gone; https://github.com/pytorch/vision/issues/7545 names copies of the images, of the devkit and of the "
        "test labels",
        (196, 8144, 8041),
        downloads=False,
    ),
    "food101": NamedSet(
        "Food-101",
        TOP1,
        _open("Food101", [{"split": "train"}], {"split": "test"}, loader=str),
        "  food-101/images/apple_pie/1005649.jpg ...\n  food-101/meta/train.json, test.json",
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        (101, 75750, 25250),
    ),
    "aircraft": NamedSet(
        "FGVC-Aircraft",
        PER_CLASS,
        _open("FGVCAircraft", [{"split": "trainval"}], {"split": "test"}, loader=str),
        "  fgvc-aircraft-2013b/data/images/0034309.jpg ...\n  fgvc-aircraft-2013b/data/variants.txt, images_variant_trainval.txt, "
        "images_variant_test.txt",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        (100, 6667, 3333),
    ),
    "cifar10": NamedSet(
        "CIFAR-10",
        TOP1,
        _open("CIFAR10", [{"train": True}], {"train": False}),
        "  cifar-10-batches-py/data_batch_1 ... data_batch_5, test_batch, batches.meta",
        _CIFAR_ORIGIN,
        (10, 50000, 10000),
    ),
    "cifar100": NamedSet(
        "CIFAR-100",
        TOP1,
        _open("CIFAR100", [{"train": True}], {"train": False}),
        "  cifar-100-python/train, test, meta",
        _CIFAR_ORIGIN,
        (100, 50000, 10000),
    ),
    "flowers": NamedSet(
        "Oxford 102 Flowers",
        PER_CLASS,
        _open("Flowers102", [{"split": "train"}, {"split": "val"}], {"split": "test"}, loader=str),
        "  flowers-102/jpg/image_00001.jpg ...\n  flowers-102/imagelabels.mat, setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (102flowers.tgz, imagelabels.mat, setid.mat)",
        (102, 2040, 6149),
    ),
    "pets": NamedSet(
        "Oxford-IIIT Pet",
        PER_CLASS,
        _open("OxfordIIITPet", [{"split": "trainval"}], {"split": "test"}),
        "  oxford-iiit-pet/images/Abyssinian_1.jpg ...\n  oxford-iiit-pet/annotations/trainval.txt, test.txt",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/ (images.tar.gz, annotations.tar.gz)",
        (37, 3680, 3669),
    ),
}
