"""Opens whatever a user names as images.

A location is `digits`; a folder of images, of Parquet files, of tars (WebDataset), of `save_to_disk`, or with train/ and val/ (or
other names of `mapet.data.splits`) in it; a single .parquet, .tar or .csv file; a pattern such as shards/train-{0000..0127}.tar; an
address `hf://datasets/OWNER/NAME`; a public set by name, `food101:ROOT` (`mapet.data.named_sets`); or `package.module:factory`.
`#split=NAME` and `#class-depth=N` may follow (`mapet.data.address`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mapet.data.address import DataAddress
from mapet.data.folder import FolderImages
from mapet.data.hub import PREFIX
from mapet.data.locations import Parts, is_location, open_location
from mapet.data.named_sets import absolute_named, is_named_set
from mapet.data.source import Concatenation, ImageSource, Subset, sample_keys, with_keys
from mapet.data.splits import part_named, validation_part
from mapet.errors import DataError, NotAllowedError, nearest
from mapet.registry import Registry, refuse_unless_allowed
from mapet.runtime.progress import say_fact

SPLITS = ("train", "test", "all")
HELD_OUT_SHARE = 0.2


# Embedded sets are called without arguments and have no splits of their own; what a user writes is called with location and split.
SOURCES: Registry[Callable[..., ImageSource]] = Registry("data source", {"digits": "mapet.data.digits:DigitImages"})


def open_source(location: str | Path, split: str = "train") -> ImageSource:
    """Opens the images at `location`.

    Splits of its own (train/ and val/ folders, train*.parquet and test*.parquet) are used where they exist: `test` is then the
    part that `#split=NAME` names, or else val if present, and test otherwise. Without them, a fifth is held out where there are
    labels to evaluate with (`hold_out`); images without labels are all for training.

    Args:
        location: What the user gave, and nothing out of a file, for which there is `recorded_location`; see the top of this
            module. Names of SOURCES go before folders: write ./digits for a folder.
        split: "train", "test" or "all".

    Raises:
        DataError: Nothing usable is there; the message lists the supported forms.
    """
    if split not in SPLITS:
        raise DataError(f"There is no split '{split}'. {nearest(split, SPLITS)}")
    if _is_factory(location):
        SOURCES.get_or_import(str(location))
        return SOURCES.create(str(location), str(location), split)
    parts = _open_location(location)
    train, *others = parts.values()
    if split == "train" and (others or train.labels is None):
        return _nonempty(train, len(train), split)
    if split == "all":
        return Concatenation([train, *others], str(location)) if others else train
    return _part(_train_and_test(parts, location), split)


def require_location(location: str | Path) -> None:
    """Refuses a location where nothing is, without opening what is there; sooner than all that needs torch can be imported.

    Raises:
        DataError: As `open_source` does.
    """
    name = DataAddress.parse(location).place
    if not (name in SOURCES or _is_factory(name) or is_named_set(name) or name.startswith(PREFIX) or is_location(name)):
        raise _nothing_at(name)


def _nothing_at(name: str) -> DataError:
    return DataError(
        f"There is no file or folder {name}. Give a folder of images, Parquet or tar files, hf://datasets/OWNER/NAME, or "
        f"the name of an embedded set. {nearest(name, SOURCES)}"
    )


def open_splits(location: str | Path) -> tuple[ImageSource, ImageSource]:
    """The results of `open_source` for "train" and for "test", located and read once.

    Raises:
        DataError: As for both; also where images without labels have no held-out part.
    """
    if _is_factory(location):
        return open_source(location, "train"), open_source(location, "test")
    both = _train_and_test(_open_location(location), location)
    return _part(both, "train"), _part(both, "test")


def recorded_location(location: object, where: Path) -> str:
    """A location out of a run's config.json, if it is images on this machine: a file runs no code and uses no network.

    Args:
        location: What the file names.
        where: The file.

    Raises:
        DataError: It is no location.
        NotAllowedError: It is an address or code, and the user did not type it.
    """
    if not isinstance(location, str) or not location or "\0" in location:
        raise DataError(f"{where} names {location!r:.80} as its images. Give DATA, the place where they are.")
    if location.startswith(PREFIX) or _is_factory(DataAddress.parse(location).place):
        try:
            refuse_unless_allowed(location, "It would be fetched, or is code, and was not used.")
        except NotAllowedError as error:
            raise NotAllowedError(f"{where}: {error} Or give DATA, where the command takes it.") from None
    return location


def absolute_location(location: str | Path) -> str:
    """`location` as it is understood from any working folder: paths and patterns made absolute, names and addresses as they are."""
    address = DataAddress.parse(location)
    place = address.place
    if is_named_set(place):
        place = absolute_named(place)
    elif not (place in SOURCES or place.startswith(PREFIX) or _is_factory(place)):
        place = str(Path(place).absolute())
    return str(replace(address, place=place))


def _is_factory(location: str | Path) -> bool:
    """Whether it is the `package.module:factory` of a user."""
    name = str(location)
    dotted = re.fullmatch(r"[\w.]+:\w+", name) is not None and not is_named_set(name)
    return dotted and name not in SOURCES and not Path(name).exists()


def _open_location(location: str | Path) -> Parts:
    """The splits at `location` by name, training part first, best held-out part second; one part if it is not split."""
    address = DataAddress.parse(location)
    name = address.place
    if name in SOURCES or _is_factory(name):
        if address.split is not None or address.class_depth is not None:
            raise DataError(f"'{name}' has neither splits by name nor class folders. Leave out --split and --class-depth.")
        return {"": SOURCES.create(name)}
    parts = open_location(location)
    if parts is None:
        raise _nothing_at(name)
    if address.split is not None:
        part_named(parts, address.split, name)
    return parts


def _train_and_test(parts: Parts, location: str | Path) -> tuple[ImageSource, ImageSource]:
    address = DataAddress.parse(location)
    train = next(iter(parts.values()))
    return (train, validation_part(parts, address.split, address.place)) if len(parts) > 1 else hold_out(train)


def _part(both: tuple[ImageSource, ImageSource], split: str) -> ImageSource:
    """The training or the test part, which must not be empty."""
    return _nonempty(both[SPLITS.index(split)], sum(map(len, both)), split)


def _nonempty(part: ImageSource, images: int, split: str) -> ImageSource:
    if not len(part):
        raise DataError(
            f"None of the {images} images of {part.location} falls into the split '{split}' (one in five is held out, "
            "by content). Add images, or sort them into train/ and val/ folders."
        )
    return part


def hold_out(source: ImageSource) -> tuple[ImageSource, ImageSource]:
    """Splits labelled images that come without splits, by content: names and order do not matter, copies stay together.

    Returns:
        The images to train on, and those whose key hashes below 20 %; both have their keys.

    Raises:
        DataError: There are no labels.
    """
    if source.labels is None and (only := only_folder(source)) is not None:
        raise DataError(
            f"{source.location} has one class folder ('{only}'), and at least two classes are needed for an evaluation. Add "
            "folders of other classes beside it."
        )
    if source.labels is None:
        raise DataError(
            f"{source.location} has no labels and no held-out part of its own: all its images are for training. To evaluate, sort "
            "the images into one folder a class, into train/ and val/ folders, or use Parquet with a column 'label'."
        )
    keyed_source = with_keys(source)
    validation = np.array([bool(key) and int(key[:8], 16) < HELD_OUT_SHARE * 2**32 for key in sample_keys(keyed_source)], bool)
    say_fact(f"Holding out {validation.sum():,} of {len(source):,} images by content, for evaluation; train/ and val/ overrule it.")
    return Subset(keyed_source, np.flatnonzero(~validation)), Subset(keyed_source, np.flatnonzero(validation))


def only_folder(source: ImageSource) -> str | None:
    """The name of the one class folder that all images of `source` lie in, so that they have no labels; None for other sources."""
    if isinstance(source, Subset):
        return only_folder(source.whole)
    return source.only_folder if isinstance(source, FolderImages) else None
