"""Class numbers and class names, which every source with labels of its own finds and checks in the same way.

Labels are paired by name. Numbers are taken as they are only where no names are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapet.errors import DataError
from mapet.runtime.printable import few, on_one_line
from mapet.runtime.progress import say
from mapet.runtime.regular import read_text

LISTINGS = ("labels.txt", "classes.txt")
UNKNOWN = -1
# Numbers without names; what is counted by class must fit into memory.
MOST_CLASSES = 10_000_000
# What the labels of a source are in its files: class numbers, class names, or numbers whose names are known.
NUMBERS, NAMES, NAMED_NUMBERS = "numbers", "names", "named numbers"
# What programs write for a missing label, and what columns of labels are called elsewhere.
_MISSING = ("nan", "null", "none", "n/a", "na", "<na>", "nat")
_LABEL_LIKE = (
    *("label", "labels", "label_name", "label_id", "class", "classes", "class_name", "class_id", "cls", "category", "category_id"),
    *("target", "y", "fine_label", "coarse_label"),
)


@dataclass(frozen=True)
class Labels:
    """Labels as they were found.

    Args:
        numbers: (n,) int64, `UNKNOWN` where there is none.
        names: Of the numbers, where they are known.
        kind: `NUMBERS`, `NAMES` or `NAMED_NUMBERS`.
    """

    numbers: np.ndarray
    names: tuple[str, ...] | None
    kind: str


def listed_classes(folder: Path) -> tuple[str, ...] | None:
    """The class names in labels.txt or classes.txt in `folder`, line n = class n; None without such a file.

    Raises:
        DataError: The file is not UTF-8, a line is empty, or both files are there and differ.
    """
    listings = {name: tuple(listed_names(folder / name)) for name in LISTINGS if (folder / name).is_file()}
    if len({*listings.values()}) > 1:
        raise DataError(f"{' and '.join(listings)} in {folder} name different classes. Remove one of the two.")
    return next(iter(listings.values()), None) or None


def listed_names(listing: Path) -> list[str]:
    """The lines of a text file, line n for the number n; empty lines at its end do not count.

    Raises:
        DataError: The file cannot be read as UTF-8, or has an empty line between others.
    """
    try:
        text = read_text(listing, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{listing} holds class names in another encoding than UTF-8. Save it as UTF-8, or remove it.") from error
    except OSError as error:
        raise DataError(f"{listing} cannot be read: {error.strerror}.") from error
    lines = [" ".join(line.split()) for line in text.rstrip().split("\n")] if text.strip() else []
    if "" in lines:
        raise DataError(
            f"Line {lines.index('') + 1} of {listing} is empty, and line n names the class n - 1. Name the class, or remove the "
            "line."
        )
    return lines


def labels_of_texts(texts: Sequence[str], names: tuple[str, ...] | None, describe: Callable[[int], str]) -> Labels:
    """Labels that were read as text.

    Args:
        texts: Of every image: a class number, or a class name; "" where there is none.
        names: Class names in the order of their numbers, such as those of labels.txt; without them the sorted texts are the names.
        describe: What to call an image in a message.

    Raises:
        DataError: A name that is not among `names`.
    """
    distinct = sorted({*texts} - {""})
    if all(re.fullmatch(r"-?\d{1,18}(\.0*)?", text, re.ASCII) for text in distinct):  # 0 and 0.0 are one class
        numbers, kind = {text: int(text.partition(".")[0]) for text in distinct}, NAMED_NUMBERS if names else NUMBERS
    else:
        kind, names = NAMED_NUMBERS if names else NAMES, names or tuple(distinct)
        numbers = {name: number for number, name in enumerate(names)}
        if foreign := [text for text in distinct if text not in numbers]:
            raise _foreign(describe(texts.index(foreign[0])), foreign[0], names)
        _say_missing(texts, describe)
        _say_alike(distinct, lambda text: describe(texts.index(text)))
    return Labels(np.fromiter((numbers.get(text, UNKNOWN) for text in texts), np.int64, len(texts)), names, kind)


def _say_missing(texts: Sequence[str], describe: Callable[[int], str]) -> None:
    """States which class names are what other programs write where there is no label."""
    for name in sorted({*texts}):
        if name.casefold() in _MISSING:
            first = describe(texts.index(name))
            say(
                f"'{name}' is taken as a class ({texts.count(name):,} images, the first {first}). Remove these rows if they have "
                "no label."
            )


def say_unused_columns(columns: Sequence[str], used: str | None, where: str) -> None:
    """States which columns of a table could be meant as labels and are not used.

    Args:
        columns: The names of all columns.
        used: The one that is used.
        where: What to call the table.
    """
    others = [name for name in columns if name.lower() in _LABEL_LIKE and name != used]
    if used and others:
        say(f"{where}: labels are those of the column '{used}'; not used: {few(others)}.")
    elif others:
        say(f"{where}: no column holds labels by its name ('label'); not used: {few(others)}. Rename the one that is meant.")


def _say_alike(names: Sequence[str], describe: Callable[[str], str]) -> None:
    """States which class names differ in case, blanks or the form of a number only."""
    name_of_form: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[\s_-]+", " ", name.casefold()).strip()
        plain = re.sub(r"^(-?)0+(?=\d)|(?<=\d)\.0*$", r"\1", plain) if re.fullmatch(r"-?\d+(\.0*)?", plain) else plain
        if (other := name_of_form.setdefault(plain, name)) != name:
            one, two = on_one_line(other), on_one_line(name)
            say(f"'{one}' and '{two}' are two classes ({describe(other)}, {describe(name)}). If they are one, write one.")
            return


def joined_labels(parts: Sequence[Labels], titles: Sequence[str]) -> Labels:
    """The labels of several files of one collection, numbered by the names of all.

    Raises:
        DataError: Only some files name their classes.
    """
    first = parts[0]
    if other := next(
        (title for part, title in zip(parts, titles, strict=True) if (part.names is None) != (first.names is None)), None
    ):
        raise DataError(
            f"Only one of {titles[0]} and {other} names the classes of its labels, so that the numbers in them cannot be paired. "
            "Write both with the same column types, or put the names in labels.txt beside them."
        )
    if all(part.names == first.names for part in parts):
        return Labels(np.concatenate([part.numbers for part in parts]), first.names, first.kind)
    names = [name for part in parts for name in part.names or ()]
    is_sorted = all([*(part.names or ())] == sorted(part.names or ()) for part in parts)
    union = tuple(sorted({*names}) if is_sorted else dict.fromkeys(names))
    renumbered = [
        renumber(part.numbers, part.names, union, lambda row, title=title: f"{title} row {row}")
        for part, title in zip(parts, titles, strict=True)
    ]
    return Labels(np.concatenate(renumbered), union, NAMES if NAMES in {part.kind for part in parts} else NAMED_NUMBERS)


def renumber(
    numbers: np.ndarray, names: tuple[str, ...] | None, classes: tuple[str, ...] | None, describe: Callable[[int], str]
) -> np.ndarray:
    """`numbers` of `names` as numbers of `classes`, paired by name; as they are where one of the two has no names.

    Raises:
        DataError: An image is of a class that `classes` lacks, or names that differ occur twice.
    """
    if names is None or classes is None or names == classes:
        return numbers
    for class_names in (names, classes):
        if len({*class_names}) < len(class_names):
            twice = next(name for name in class_names if class_names.count(name) > 1)
            raise DataError(f"The class name '{twice}' occurs twice, so that {describe(0)} and others cannot be paired by name.")
    if len(large := np.flatnonzero(numbers >= len(names))):
        raise _misfit(describe(int(large[0])), int(numbers[large[0]]), names)
    number_of = {name: number for number, name in enumerate(classes)}
    table = np.array([number_of.get(name, UNKNOWN) for name in names], np.int64)
    labelled, result = numbers >= 0, numbers.copy()
    result[labelled] = table[numbers[labelled]]
    if len(lost := np.flatnonzero(labelled & (result == UNKNOWN))):
        raise _foreign(describe(int(lost[0])), names[int(numbers[lost[0]])], classes)
    return result


def number_labels(
    labels: Labels, classes: tuple[str, ...] | None, describe: Callable[[int], str]
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Class numbers and class names of a source.

    Args:
        labels: As they were found.
        classes: The names of the training images' classes, if this is another part of them; by default the labels' own.
        describe: What to call an image in a message.

    Returns:
        (n,) int64 class numbers, None where all are unknown, and the class names.

    Raises:
        DataError: Some images have no label, or one that does not fit.
    """
    checked = checked_labels(labels.numbers, labels.names or classes, describe)
    if checked is None:
        return None, None
    return renumber(checked, labels.names, classes, describe), classes or labels.names


def checked_labels(labels: np.ndarray, classes: tuple[str, ...] | None, describe: Callable[[int], str]) -> np.ndarray | None:
    """`labels`, (n,) int64 with -1 where unknown, if they are complete and fit `classes`; None if all are unknown.

    Raises:
        DataError: Some are unknown, negative or too large.
    """
    if (labels == UNKNOWN).all():
        return None
    wrong = np.flatnonzero((labels < 0) | (labels >= (len(classes) if classes else MOST_CLASSES)))
    if len(wrong):
        raise _misfit(describe(int(wrong[0])), int(labels[wrong[0]]), classes)
    return labels


def check_pairable(train: Any, part: Any) -> None:
    """Refuses two parts of which one has class numbers alone and the other class names that no numbers belong to.

    Raises:
        DataError: Names both.
    """
    kinds = [getattr(source, "label_kind", None) if source.labels is not None else None for source in (train, part)]
    if {*kinds} == {NUMBERS, NAMES}:
        raise DataError(
            f"The labels of {train.describe(0)} are class {kinds[0]}, those of {part.describe(0)} are class {kinds[1]}: which "
            "number is which class is not known. Put the class names, one a line, in labels.txt beside the numbers."
        )


def refuse_masks(location: object, folders: Collection[str]) -> None:
    """Refuses to take the two folders of a segmentation set for classes.

    Raises:
        DataError: They are images/ and annotations/.
    """
    if {*folders} == {"images", "annotations"}:
        raise DataError(
            f"{location} has images/ and annotations/: images with masks, not classes. Use `mapet evaluate segment` for it, give "
            "images/ alone to use the images without labels, or give a folder with one folder a class."
        )


def _misfit(image: str, number: int, classes: tuple[str, ...] | None) -> DataError:
    limit = f"0 to {len(classes) - 1}, as there are {len(classes)} class names" if classes else "0 or more"
    if number >= MOST_CLASSES and not classes:
        limit = f"below {MOST_CLASSES:,}"
    label = "no label (-1)" if number == UNKNOWN else f"the label {number}"
    return DataError(f"{image} has {label}; allowed: {limit}. Label all images so, or none.")


def _foreign(image: str, name: str, classes: tuple[str, ...]) -> DataError:
    return DataError(
        f"{image} is labelled '{on_one_line(name)}', which is none of the {len(classes)} classes known ({few(classes)}). "
        "Correct the label, or the list of classes."
    )
