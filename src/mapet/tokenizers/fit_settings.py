"""Everything that decides what a fitted tokenizer is, and the paper's settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mapet.errors import TokenizerError, nearest
from mapet.tokenizers.features.base import run_behind
from mapet.tokenizers.features.run import sizes_of

# Ids up to here take two bytes in a token store; k-means at such a size is not affordable anyway.
LARGEST_VOCABULARY = 65_536


@dataclass(frozen=True)
class FitSettings:
    """A fit of k-means tokens.

    Args:
        features: As in `create_features`: "pixels", "coates", a timm model's name, the folder of a run.
        feature_options: Settings of that kind of features.
        image_size: Height and width at which images are tokenised, in pixels.
        patch_size: Height and width of a patch at that size.
        vocab_size: Number of tokens.
        num_points: About how many patches are clustered.
        share: Share of all patches that are clustered, in place of `num_points`.
        max_images: Size of a random sample of the images; None for all images.
        iterations: Of k-means, per restart.
        restarts: Of k-means; the lowest inertia wins.
        seed: Determines the sample and every draw.

    Raises:
        TokenizerError: A value that is not allowed.
    """

    features: str = "coates"
    feature_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    patch_size: int = 16
    vocab_size: int = 512
    num_points: int = 200_000
    share: float | None = None
    max_images: int | None = 20_000
    iterations: int = 20
    restarts: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if misplaced := [name for name in ("name", "image_size", "patch_size") if name in self.feature_options]:
            raise TokenizerError(f"{misplaced[0]} is no option of the features; it is set beside them.")
        if not 2 <= self.vocab_size <= LARGEST_VOCABULARY:
            raise TokenizerError(f"The vocabulary size is {self.vocab_size}. Allowed: 2 to {LARGEST_VOCABULARY}.")
        if self.share is not None and not 0 < self.share <= 1:
            raise TokenizerError(f"The share of patches is {self.share:g}. Allowed: above 0, at most 1 (all patches).")
        for name, value in (("num_points", self.num_points), ("max_images", self.max_images)):
            if value is not None and value < 1:
                raise TokenizerError(f"{name} is {value}. Allowed: 1 or more.")

    def per_image(self, images: int, patches: int) -> float:
        """How many of its `patches` each of `images` images gives, on average."""
        expected = self.num_points / images if self.share is None else self.share * patches
        return min(float(patches), expected)


PRESETS = {
    # mapet.md, section 5: about 2 % of ImageNet's patches.
    "k-clip": FitSettings(
        features="resnet50x64_clip.openai",
        image_size=448,
        patch_size=32,
        vocab_size=8192,
        num_points=8192 * 512,
        max_images=None,
        iterations=20,
        restarts=5,
    )
}


def preset_settings(preset: str | None, **overrides: Any) -> FitSettings:
    """The settings of a preset, or the defaults, where the `overrides` that are not None take their place.

    Features of a run come with its sizes; `max_images` of 0 means all, as does a `share` without `max_images`.

    Raises:
        TokenizerError: There is no such preset, or a value is not allowed.
        ModelError: The run has no backbone.
    """
    if preset is not None and preset not in PRESETS:
        raise TokenizerError(f"There is no preset '{preset}'. {nearest(preset, PRESETS)}")
    values = {name: value for name, value in overrides.items() if value is not None}
    if "share" in values and "num_points" in values:
        raise TokenizerError(
            f"Both a share ({values['share']:g}) and a number of patches ({values['num_points']}) are given; give one of them."
        )
    if run := run_behind(values.get("features", "")):
        image_size, patch_size = sizes_of(run)
        values = {"image_size": image_size, "patch_size": patch_size} | values
    if values.get("max_images") == 0 or ("share" in values and "max_images" not in values):
        values["max_images"] = None
    return replace(PRESETS[preset] if preset else FitSettings(), **values)
