"""Class numbers and class names, which every source with labels of its own finds and checks in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mapet.errors import DataError

LISTINGS = ("labels.txt", "classes.txt")
UNKNOWN = -1


def listed_classes(folder: Path) -> tuple[str, ...] | None:
    """The class names in labels.txt or classes.txt in `folder`, line n = class n; None without such a file."""
    listing = next((folder / name for name in LISTINGS if (folder / name).is_file()), None)
    if listing is None:
        return None
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{listing} holds class names in another encoding than UTF-8. Save it as UTF-8, or remove it.") from error
    return tuple(" ".join(line.split()) for line in lines if line.strip()) or None


def number_labels(
    texts: Sequence[str], classes: tuple[str, ...] | None, describe: Callable[[int], str]
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Numbers for labels that were read as text.

    Args:
        texts: Of every image: a class number, or a class name; "" where there is none.
        classes: Class names to number by; where it is None and `texts` are names, their sorted names are the classes.
        describe: What to call an image in a message.

    Returns:
        (n,) int64 class numbers and the class names; as in `checked_labels`, None for the numbers where all are unknown.

    Raises:
        DataError: Some images have no label, or one that is not among the classes.
    """
    distinct = sorted(set(texts) - {""})
    if all(re.fullmatch(r"-?\d{1,18}", text, re.ASCII) for text in distinct):
        numbers = {text: int(text) for text in distinct}
    else:
        classes = classes or tuple(distinct)
        numbers = {name: number for number, name in enumerate(classes)}
        if foreign := [text for text in distinct if text not in numbers]:
            raise DataError(
                f"{describe(texts.index(foreign[0]))} is labelled '{foreign[0]}', which is none of the {len(classes)} classes "
                f"known ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}). Correct the label, or the list of classes."
            )
    labels = np.fromiter((numbers.get(text, UNKNOWN) for text in texts), np.int64, len(texts))
    return checked_labels(labels, classes, describe), classes


def checked_labels(labels: np.ndarray, classes: tuple[str, ...] | None, describe: Callable[[int], str]) -> np.ndarray | None:
    """`labels`, (n,) int64 with -1 where unknown, if they are complete and fit `classes`; None if all are unknown.

    Raises:
        DataError: Some are unknown, negative or too large.
    """
    if (labels == UNKNOWN).all():
        return None
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes) if classes else False))
    if len(wrong):
        limit = f"0 to {len(classes) - 1}, as there are {len(classes)} class names" if classes else "0 or more"
        found = "no label (-1)" if labels[wrong[0]] == UNKNOWN else f"the label {labels[wrong[0]]}"
        raise DataError(f"{describe(int(wrong[0]))} has {found}; allowed: {limit}. Label all images so, or none.")
    return labels
