"""Images with masks that come along: the embedded digits, four to a picture, their ink labelled with the digit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mapet.data.decode import decode_image
from mapet.data.digits import DigitImages
from mapet.runtime.files import atomic_directory

MAGNIFIED = 2  # pixels of a picture for one of a digit, in each direction
_INK = 96  # of 255
_HELD_OUT = 5  # one picture in so many is for evaluation


def labelled_digits(folder: Path) -> str:
    """Writes 449 pictures of 32 x 32 pixels with masks below `folder`, unless they are there.

    Returns:
        The folder, as a location of images with masks.
    """
    if not folder.is_dir():
        digits = DigitImages()
        with atomic_directory(folder) as partial:
            names = ("background", *(digits.classes or ()))
            (partial / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
            for number in range(len(digits) // 4):
                _write(partial, number, *_picture(digits, range(4 * number, 4 * number + 4)))
    return str(folder)


def _picture(digits: DigitImages, indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Grey values and ids (32, 32), uint8: 0 is the background, n + 1 the digit n."""
    assert digits.labels is not None
    grey = [np.asarray(decode_image(digits.read(index)))[..., 0] for index in indices]
    ids = [(ink >= _INK) * np.uint8(digits.labels[index] + 1) for ink, index in zip(grey, indices, strict=True)]
    return _put_together(grey), _put_together(ids)


def _put_together(parts: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.block([[*parts[:2]], [*parts[2:]]]).astype(np.uint8)
    return whole.repeat(MAGNIFIED, axis=0).repeat(MAGNIFIED, axis=1)


def _write(folder: Path, number: int, grey: np.ndarray, ids: np.ndarray) -> None:
    part = "train" if number % _HELD_OUT else "val"
    for kind, pixels in (("images", grey), ("annotations", ids)):
        (folder / kind / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / part / f"{number:04}.png")
