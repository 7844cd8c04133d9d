"""Which output of a published classifier stands for which class of the images; never guessed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mapet.compat import ImageNetInfo
from mapet.data.labels import listed_names
from mapet.data.source import ImageSource
from mapet.errors import DataError
from mapet.runtime.printable import few, on_one_line
from mapet.runtime.progress import say

_WNID = re.compile(r"n\d{8}")
_MISFIT = (
    "the class of each output is unknown. Give the images the head was trained for, or the names of its outputs in "
    "order with --class-map FILE, one a line."
)


def read_class_map(path: Path) -> tuple[str, ...]:
    """The classes of a head in its order.

    Line n names class n; words behind a wnid are left out (LOC_synset_mapping.txt). Or every line is "name n", in any order, as in
    timm's class maps.

    Raises:
        DataError: There is no such file, a line in it is empty, or its numbers are not 0 to the number of lines - 1.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. A class map is a text file that names the class of every output, one a line.")
    lines = listed_names(path)
    numbered = [re.fullmatch(r"(.+)\s(\d+)", line) for line in lines]
    if not all(numbered):
        return tuple(line.split()[0] if _WNID.fullmatch(line.split()[0]) else line for line in lines)
    names = {int(match[2]): match[1].strip() for match in numbered if match}
    if sorted(names) != list(range(len(lines))):
        raise DataError(f"{path} numbers its {len(lines)} classes otherwise than 0 to {len(lines) - 1}. Name each number once.")
    return tuple(names[number] for number in range(len(lines)))


def head_numbers(source: ImageSource, outputs: int, class_map: tuple[str, ...] | None = None) -> np.ndarray:
    """Which output of the head stands for each class of the images.

    Without a class map, class folders are as many as the outputs. Those named 0 to C - 1 are the outputs of these numbers (00, 01
    and so on too); others are the outputs in the order of their names as text; a line states it. Folders named by wnids of
    ImageNet-1k in front of a head with 1,000 outputs may be fewer: the list of wnids is timm's.

    Args:
        source: Labelled images.
        outputs: Number of classes of the head.
        class_map: Names of the outputs, in order.

    Returns:
        (classes,) int64.

    Raises:
        DataError: Classes and outputs do not correspond; the message has both.
    """
    assert source.labels is not None
    names, count = source.classes, int(source.labels.max()) + 1 if source.classes is None else len(source.classes)
    if class_map is not None and len(class_map) != outputs:
        raise DataError(
            f"The class map has {len(class_map)} classes, the head {outputs}. Give the map that the head was trained by."
        )
    if names is None or (class_map is None and count == outputs):
        if count > outputs:
            raise DataError(f"The images of {source.location} have {count} classes, the head {outputs}: {_MISFIT}")
        return np.arange(count) if names is None else _by_name(source, names)
    output_names = class_map or _imagenet(names, outputs)
    if output_names is None:
        raise DataError(f"{source.location} has {count} classes ({few(names, 3)}), the head has {outputs}: {_MISFIT}")
    numbers = {name: number for number, name in enumerate(output_names)}
    if foreign := [name for name in names if name not in numbers]:
        raise DataError(
            f"The class '{on_one_line(foreign[0])}' of {source.location} is none of the {outputs} of the head ({len(foreign)} such "
            f"classes): {_MISFIT}"
        )
    return np.array([numbers[name] for name in names])


def _by_name(source: ImageSource, names: tuple[str, ...]) -> np.ndarray:
    """The outputs of as many classes: by number where the names are the numbers, else in the order that the classes have."""
    if all(re.fullmatch(r"\d{1,9}", name, re.ASCII) for name in names) and {*map(int, names)} == {*range(len(names))}:
        return np.array([*map(int, names)])
    if [*names] == sorted(names) and not _is_imagenet(names):
        examples = few(names[:3])
        say(
            f"{source.location}: the {len(names)} classes are taken for the outputs in the order of their names as text "
            f"({examples}, ...). Give --class-map FILE if the head was trained in another order."
        )
    return np.arange(len(names))


def _is_imagenet(names: tuple[str, ...]) -> bool:
    return all(_WNID.fullmatch(name) for name in names)


def _imagenet(names: tuple[str, ...], outputs: int) -> tuple[str, ...] | None:
    """ImageNet-1k's wnids where these classes are some of them and the head has as many outputs."""
    wnids = tuple(ImageNetInfo("imagenet-1k").label_names())
    if outputs != len(wnids) or not all(_WNID.fullmatch(name) for name in names) or not set(names) <= set(wnids):
        return None
    say(
        f"{len(names)} of ImageNet's {outputs:,} classes, found by their wnids. The head still chooses among all {outputs:,}; do "
        "not compare with figures of the full validation set."
    )
    return wnids
