"""The embedded data set: the 1,797 handwritten digits that come with scikit-learn, 8 x 8 grey pixels, ten classes.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository (its test part).
"""

from __future__ import annotations

import numpy as np

_HEADER = b"P5 8 8 255\n"


class DigitImages:
    """All digits as binary PGM files, the values 0 to 16 spread over 0 to 255."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # 0.5 s to import, only needed here

        pixels, labels = map(np.asarray, load_digits(return_X_y=True))
        self._pixels = np.rint(pixels * 255 / 16).astype(np.uint8)
        self.location = "digits"
        self.labels: np.ndarray | None = labels.astype(np.int64)
        self.classes: tuple[str, ...] | None = tuple("0123456789")

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> bytes:
        """One digit as a PGM file."""
        return _HEADER + self._pixels[index].tobytes()

    def describe(self, index: int) -> str:
        """The digit's position in scikit-learn's set."""
        return f"digits sample {index}"
