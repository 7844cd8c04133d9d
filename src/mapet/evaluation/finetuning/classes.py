"""Whether the images to learn from and those to be judged on have the same classes."""

from __future__ import annotations

import numpy as np

from mapet.data.sources import ImageSource, Subset
from mapet.errors import DataError
from mapet.runtime.progress import say

_NAMED = 5


def check_classes(train: ImageSource, test: ImageSource) -> None:
    """Refuses a class without training images, and test images of other classes; labels are those that `check_labels` accepts.

    A held-out part, which was drawn by chance, may lack a class: a line says so.

    Raises:
        DataError: Names the classes.
    """
    assert train.labels is not None
    assert test.labels is not None
    if train.classes and test.classes and tuple(train.classes) != tuple(test.classes):
        different = sorted({*train.classes} ^ {*test.classes})
        raise DataError(
            f"Training and test images of {train.location} have different lists of classes ({len(train.classes)} and "
            f"{len(test.classes)}): {_few(different) if different else 'in another order'}. Use the same names in both."
        )
    count = max(len(train.classes or ()), int(max(train.labels.max(), test.labels.max())) + 1)
    names = [*(train.classes or ()), *(f"number {number}" for number in range(len(train.classes or ()), count))]
    missing = [names[number] for number in np.flatnonzero(np.bincount(train.labels, minlength=count) == 0)]
    if missing:
        raise DataError(
            f"{len(missing)} of {count} classes have no training images in {train.location}: {_few(missing)}. Add images, or "
            "remove these classes from the list and from the test images; class numbers must run from 0 without gaps."
        )
    unseen = [names[number] for number in np.flatnonzero(np.bincount(test.labels, minlength=count) == 0)]
    if unseen and not isinstance(test, Subset):
        raise DataError(
            f"{len(unseen)} of {count} classes have no test images in {test.location}: {_few(unseen)}. Use the same class folders "
            "in train/ and val/, each with images in it."
        )
    if unseen:
        say(f"{len(unseen)} of {count} classes have no test images by chance: {_few(unseen)}. They are learned and not judged.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
