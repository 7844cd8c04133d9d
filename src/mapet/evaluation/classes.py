"""Whether training and test images mean the same by a class number."""

from __future__ import annotations

import numpy as np

from mapet.data.source import ImageSource, Subset
from mapet.errors import DataError
from mapet.runtime.printable import few
from mapet.runtime.progress import say


def check_same_classes(train: ImageSource, test: ImageSource) -> None:
    """Refuses training and test images whose lists of class names differ; prints the named classes without images.

    Raises:
        DataError: Names the classes.
    """
    if train.classes and test.classes and tuple(train.classes) != tuple(test.classes):
        different = sorted({*train.classes} ^ {*test.classes})
        raise DataError(
            f"Training and test images of {train.location} have different lists of classes ({len(train.classes)} and "
            f"{len(test.classes)}): {few(different) if different else 'in another order'}. Use the same names in both."
        )
    for source, part in ((train, "training"), (test, "test")):
        missing = _without_images(source, class_names(train, test)) if train.classes and not isinstance(source, Subset) else []
        if missing:
            say(f"{len(missing)} of {len(train.classes or ())} classes have no {part} images: {few(missing)}.")


def check_complete(train: ImageSource, test: ImageSource) -> None:
    """Refuses a class without training images, and one without test images; labels are those that `check_labels` accepts.

    A held-out part, which was drawn by chance, may lack a class: a line states this.

    Raises:
        DataError: Names the classes.
    """
    names = class_names(train, test)
    if missing := _without_images(train, names):
        raise DataError(
            f"{len(missing)} of {len(names)} classes have no training images in {train.location}: {few(missing)}. Add images, or "
            "remove these classes from the list and from the test images; class numbers must run from 0 without gaps."
        )
    unseen = _without_images(test, names)
    if unseen and not isinstance(test, Subset):
        raise DataError(
            f"{len(unseen)} of {len(names)} classes have no test images in {test.location}: {few(unseen)}. Use the same class "
            "folders in train/ and val/, each with images in it."
        )
    if unseen:
        say(f"{len(unseen)} of {len(names)} classes have no test images by chance: {few(unseen)}. They are trained on, not tested.")


def lost_classes(source: ImageSource, labels: np.ndarray | None, part: str) -> str:
    """A line about the classes whose images were all skipped as unreadable; "" for none.

    Args:
        source: All images of a part.
        labels: (n,) class numbers of those that could be read.
        part: "training" or "test".
    """
    if source.labels is None or labels is None or not len(source.labels):
        return ""
    names = class_names(source, source)
    lost = [names[number] for number in np.setdiff1d(source.labels, labels)]
    return f"{len(lost)} of {len(names)} classes have no {part} images that can be read: {few(lost)}." if lost else ""


def class_names(train: ImageSource, test: ImageSource) -> list[str]:
    """The names of all classes, in the order of their numbers; "number N" for those that have none."""
    assert train.labels is not None
    assert test.labels is not None
    named = [*(train.classes or ())]
    count = max(len(named), int(max(train.labels.max(), test.labels.max())) + 1)
    return [*named, *(f"number {number}" for number in range(len(named), count))]


def _without_images(source: ImageSource, names: list[str]) -> list[str]:
    assert source.labels is not None
    return [names[number] for number in np.flatnonzero(np.bincount(source.labels, minlength=len(names)) == 0)]
