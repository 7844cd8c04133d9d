"""What a backbone is built from and how it is fed: timm's name and arguments, image size, normalisation, seed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from pydantic import ConfigDict

from mapet.compat import VisionTransformer
from mapet.config.architecture import LARGEST_IMAGE, check_architecture
from mapet.errors import ModelError
from mapet.models.vit import create_vit
from mapet.runtime.seeding import seeded_globally


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone and feed it.

    Args:
        name: A timm model.
        options: Keyword arguments of `timm.create_model`.
        image_size: Side of its images in pixels.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        seed: Of the run, from which its random initialisation was drawn.
        crop_fraction: Share of the shorter side used in evaluation: the central square of an image, or less of it.

    Raises:
        ModelError: An option is none of a ViT's architecture; see `mapet.config.architecture`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    options: dict[str, Any]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        check_architecture(self.options, ModelError, f"The options of '{self.name}'")
        for name, value, fits, allowed in (
            ("image_size", self.image_size, 0 <= self.image_size <= LARGEST_IMAGE, f"0 to {LARGEST_IMAGE}"),
            ("crop_fraction", self.crop_fraction, 0 < self.crop_fraction <= 1, "above 0, at most 1"),
            ("mean", self.mean, all(map(isfinite, self.mean)), "three finite numbers"),
            ("std", self.std, all(value > 0 and isfinite(value) for value in self.std), "three finite numbers above 0"),
        ):
            if not fits:
                raise ModelError(f"'{self.name}' has {name}={value}; allowed: {allowed}.")

    def build(self, **options: Any) -> VisionTransformer:
        """The backbone at its random initialisation, a function of `seed` alone."""
        with seeded_globally(self.seed, "backbone"):
            return create_vit(self.name, **self.options, **options)
