"""How images are prepared for a published classifier: timm's evaluation transform, whose numbers published figures rest on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

from PIL import Image
from torch import Tensor

from mapet.compat import create_transform
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD, without_far_ends
from mapet.errors import SettingsError, nearest

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise. The defaults are the paper's (MaPeT, Table 9): shorter side 248, bicubic, crop 224.

    Args:
        size: Side of the crop in pixels.
        crop_pct: The shorter side is resized to floor(size / crop_pct).
        interpolation: One of INTERPOLATIONS.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        crop_mode: timm's: "center"; "squash" and "border" occur among timm's own models.

    Raises:
        SettingsError: A value is not allowed.
    """

    size: int
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SettingsError(f"The image size is {self.size} pixels; allowed: 1 or more.")
        if not 0 < self.crop_pct <= 1:
            raise SettingsError(
                f"The share of the image that the crop keeps (crop_pct) is {self.crop_pct}; allowed: above 0, to 1."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise SettingsError(f"There is no interpolation '{self.interpolation}'. {nearest(self.interpolation, INTERPOLATIONS)}")

        if not all(map(math.isfinite, self.mean)):
            raise SettingsError(f"The mean is {' '.join(map(str, self.mean))}; allowed: three numbers, of images in [0, 1].")
        if not all(0 < value < math.inf for value in self.std):
            raise SettingsError(
                f"The standard deviation is {' '.join(map(str, self.std))}; allowed: three numbers above 0, to divide by."
            )

    def describe(self) -> dict[str, Any]:
        """Every setting; JSON."""
        return asdict(self)

    def line(self) -> str:
        """The same in words."""
        mode = "" if self.crop_mode == "center" else f" ({self.crop_mode})"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        shorter = math.floor(self.size / self.crop_pct)
        return f"shorter side to {shorter} ({self.interpolation}), centre crop {self.size}{mode}, mean {mean}, std {std}"


class ValidationView:
    """What a classifier sees of an image: timm's evaluation transform, without the normalisation."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.size = preprocessing.size
        self._cuts = preprocessing.crop_mode == "center"  # other modes show the whole image
        self._transform: Any = create_transform(
            (3, self.size, self.size),
            crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation,
            crop_mode=preprocessing.crop_mode,
            use_prefetcher=True,  # stops in front of the conversion to floats
        )

    def __call__(self, image: Image.Image, seed: int = 0) -> Tensor:
        """uint8 (3, size, size) of a PIL image in mode RGB; there is no chance in it."""
        return cast(Tensor, self._transform(without_far_ends(image) if self._cuts else image))
