"""The names of splits: one list for folders, files, columns of tables, the Hub and masks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mapet.errors import DataError
from mapet.runtime.progress import say

# In the order of preference; any case. trainval is train and val together.
SPLIT_NAMES = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
TRAIN, HELD_OUT = "train", ("val", "test")
TRAIN_AND_VAL = "trainval"
# Columns of tables that may name the split of a row, the best one first.
SPLIT_COLUMNS = (
    "split",
    "set",
    "subset",
    "partition",
    "fold",
    "phase",
    "is_valid",
    "is_val",
    "is_validation",
    "is_test",
    "is_train",
)
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "f", "n"), False),
}
_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_ANY = "|".join(sorted(_SPLITS, key=len, reverse=True))
_WHOLE = re.compile(rf"({_ANY})(?:[-_. ]?(?:set|split|part|images?|imgs?|data|\d+))*")
_WORD = re.compile(rf"(?<![a-z0-9])({_ANY})(?:set|split)?(?![a-z])")
T = TypeVar("T")


def split_named(name: str) -> str | None:
    """The split that a whole name stands for: "train", "val" or "test"; also Training_Set, valid, test1; None for others."""
    match = _WHOLE.fullmatch(name.strip().lower())
    return _SPLITS[match[1]] if match else None


def split_of(name: str) -> str | None:
    """The split that a file's name holds as a word of its own: train-0000, imagenet-validation-03.

    Raises:
        DataError: The name holds words of several splits.
    """
    word = _word_of(name)
    return word and _SPLITS[word]


def _word_of(name: str) -> str | None:
    splits = {_SPLITS[word]: word for word in reversed(_WORD.findall(name.lower()))}
    if len(splits) > 1:
        words = ", ".join(splits.values())
        raise DataError(f"The file name '{name}' holds the names of several splits ({words}). Rename the file.")
    return next(iter(splits.values()), None)


def word_groups(names: Iterable[str]) -> list[tuple[tuple[str, ...], dict[str, list[str]]]]:
    """Names that hold the word of one split, grouped by their other words; digits do not count.

    Returns:
        The other words of each group, and its names by split, train first: seg_train and seg_test are
        (("seg",), {"train": ["seg_train"], "test": ["seg_test"]}).
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in names:
        if split := _split_in(name):
            others = tuple(re.findall("[a-z]+", _WORD.sub(" ", _spaced(name))))
            groups.setdefault(others, {}).setdefault(split, []).append(name)
    return [(words, {split: group[split] for split in SPLIT_NAMES if split in group}) for words, group in groups.items()]


def _spaced(name: str) -> str:
    """SegTrain as seg_train."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _split_in(name: str) -> str | None:
    """The split that a folder's name holds as a word; None for none, or several."""
    splits = {_SPLITS[word] for word in _WORD.findall(_spaced(name))}
    return splits.pop() if len(splits) == 1 else None


def split_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by split, the training part first; empty if they are not named after the training part and another split.

    Raises:
        DataError: Some are named after splits and others are not, or two names stand for one split.
    """
    if len(files) < 2:
        return {}
    groups: dict[str | None, list[Path]] = {split: [] for split in (*SPLIT_NAMES, None)}
    for file in files:
        groups[split_of(file.stem)].append(file)
    others = groups.pop(None)
    present = {str(split): group for split, group in groups.items() if group}
    if len(present) < 2:
        return {}
    if TRAIN not in present:
        say(f"{files[0].parent} holds files for {' and '.join(present)} and none for training: all are taken as one collection.")
        return {}
    for group in present.values():
        if other := next((file for file in group if _word_of(file.stem) != _word_of(group[0].stem)), None):
            raise _twice(str(other.parent), group[0].name, other.name)
    if others:
        raise DataError(
            f"{others[0].parent} holds {others[0].name} beside files named after splits ({names_in_words()}). Rename it, move it "
            "away, or give one file."
        )
    return present


def by_split(names: Iterable[str], where: str) -> dict[str, str]:
    """Split to the one of `names` that stands for it, in the order train, val, test; train goes before trainval.

    Raises:
        DataError: Two names stand for one split.
    """
    name_of_split: dict[str, str] = {}
    for name in names:
        split = split_named(name)
        if split in name_of_split and TRAIN_AND_VAL not in (name_of_split[split].lower(), name.lower()):
            raise _twice(where, name_of_split[split], name)
        if split is not None and (split not in name_of_split or name_of_split[split].lower() == TRAIN_AND_VAL):
            name_of_split[split] = name
    return {split: name_of_split[split] for split in SPLIT_NAMES if split in name_of_split}


def split_rows(columns: Mapping[str, Sequence[str]], describe: Callable[[int], str], where: str) -> dict[str, np.ndarray]:
    """The rows of every split that a column names; one entry or none where there is nothing to split.

    The column 'split' names them. Without it another one of `SPLIT_COLUMNS` does, if it holds names of splits, or booleans
    in is_valid and its like; a line states which columns are not used.

    Args:
        columns: Those of `SPLIT_COLUMNS` that there are, by name.
        describe: What to call a row in messages.
        where: What to call the table.

    Raises:
        DataError: A cell is empty or names no split, several columns name splits, or there are several splits and no training part.
    """
    splits_of_column = {column: _as_splits(column, values) for column, values in columns.items()}
    used = [column for column, values in splits_of_column.items() if column == SPLIT_COLUMNS[0] and any(values)]
    used = used or [column for column, values in splits_of_column.items() if any(map(split_named, {*values}))]
    if len(used) > 1:
        raise DataError(f"{where}: the columns {' and '.join(used)} both name splits. Rename one of them, or remove it.")
    if unused := [column for column, values in columns.items() if column not in used and any(values)]:
        say(
            f"{where}: the column '{unused[0]}' is not used (first value: {next(filter(None, columns[unused[0]])):.40}). A column "
            "'split' with the names train, val and test sorts the images into splits."
        )
    return _rows_of(used[0], splits_of_column[used[0]], describe) if used else {}


def _rows_of(column: str, values: Sequence[str], describe: Callable[[int], str]) -> dict[str, np.ndarray]:
    splits = {value: split_named(value) for value in dict.fromkeys(values)}
    if wrong := [value for value, split in splits.items() if split is None]:
        raise DataError(
            f"{describe(values.index(wrong[0]))} has the split '{wrong[0]}'; the column '{column}' may hold {names_in_words()}. "
            "Correct it in every row, or rename the column."
        )
    rows = {split: np.flatnonzero([splits[value] == split for value in values]) for split in SPLIT_NAMES}
    rows = {split: numbers for split, numbers in rows.items() if len(numbers)}
    if len(rows) > 1 and TRAIN not in rows:
        raise DataError(f"The column '{column}' names {' and '.join(rows)}, and no row is for training. Name some rows 'train'.")
    return rows


def _as_splits(column: str, values: Sequence[str]) -> Sequence[str]:
    """The values of a column; those of is_valid, is_test and is_train as names of splits where all are booleans."""
    split = split_named(column.removeprefix("is_")) if column.startswith("is_") else None
    if split is None or not {value.lower() for value in values} <= _BOOLEANS.keys():
        return values
    other = TRAIN if split != TRAIN else HELD_OUT[0]
    return [split if _BOOLEANS[value.lower()] else other for value in values]


def validation_part(parts: Mapping[str, T], split: str | None, where: str) -> T:
    """The part of several that is evaluated on; a line names it where another one is left out.

    Args:
        parts: By name, the training part first.
        split: The name that the user gave, if any.
        where: What to call the data in messages.

    Raises:
        DataError: There is no part of that name.
    """
    train, *others = parts
    name = next(iter(others), None) if split is None else part_named(parts, split, where)
    if name is None or name == train:
        raise DataError(f"{where} has no part to evaluate on besides '{train}'. Give data with val/ or test/.")
    if unused := [other for other in others if other != name]:
        say(
            f"{where}: '{train}' is for training, '{name}' is evaluated on, left out: {', '.join(unused)}. --split {unused[0]} "
            "evaluates on that one."
        )
    return parts[name]


def part_named(parts: Iterable[str], split: str, where: str) -> str:
    """The one of `parts` that the user means by `split`: its name, or another name of the same split.

    Raises:
        DataError: There is none.
    """
    names = [*parts]
    if names == [""]:
        raise DataError(f"{where} has no splits of its own, so that there is no '{split}'. Leave out --split.")
    canonical = split_named(split)
    part = next((name for name in names if name == split), None) or next(
        (name for name in names if canonical is not None and canonical in (split_named(name), _split_in(name))), None
    )
    if part is None:
        raise DataError(f"{where} has no split '{split}'. It has: {', '.join(names)}.")
    return part


def _twice(where: str, one: str, other: str) -> DataError:
    return DataError(f"{where} holds both '{one}' and '{other}', which are two names of one split. Rename one, or move it away.")


def names_in_words() -> str:
    """All names, for messages: "train (training, trn, ...), ..."."""
    return ", ".join(f"{names[0]} ({', '.join(names[1:])})" for names in SPLIT_NAMES.values())
