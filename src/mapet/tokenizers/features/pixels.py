"""Whitened pixels: the simplest features, of edges and colours rather than of things."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.errors import TokenizerError
from mapet.tokenizers.features.base import FeatureExtractor, Whitening, normalise_contrast


class PixelFeatures(FeatureExtractor):
    """A window around every patch, normalised in brightness and contrast, then whitened (Coates & Ng 2012).

    Args:
        image_size: Height and width of its images in pixels.
        patch_size: Height and width of a patch.
        window: Height and width of the window, centred on the patch and reflected at the borders; by default two patches wide.
        dim: Principal components kept; at most 3 x window x window.
        epsilon: Damping of weak components, relative to the mean variance.
    """

    images_to_fit = 2000

    def __init__(self, image_size: int, patch_size: int, window: int | None = None, dim: int = 128, epsilon: float = 0.1) -> None:
        window = 2 * patch_size if window is None else window
        widest = patch_size + 2 * (image_size - 1)
        if not patch_size <= window <= widest:
            raise TokenizerError(
                f"A window of {window} pixels does not fit around patches of {patch_size} in images of {image_size}. "
                f"Allowed: {patch_size} to {widest}."
            )
        values = 3 * window * window
        grid = image_size // patch_size
        super().__init__(image_size, (grid, grid), min(dim, values))
        self.patch_size, self.window, self.epsilon = patch_size, window, epsilon
        self.whitening = Whitening(values, self.dim, epsilon)

    def settings(self) -> dict[str, Any]:
        """What `create_features` needs to build it again."""
        names = ("image_size", "patch_size", "window", "dim", "epsilon")
        return {"name": "pixels", **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Estimates the whitening from all windows of `images`."""
        self.whitening.fit(self._windows(chunk).flatten(0, 2) for chunk in images.split(64))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, gh, gw, dim) of images (B, 3, image_size, image_size) in [0, 1]."""
        return self.whitening(self._windows(images))

    def _windows(self, images: Tensor) -> Tensor:
        """(B, gh, gw, 3 x window x window), normalised."""
        before = (self.window - self.patch_size) // 2
        after = self.window - self.patch_size - before
        padded = F.pad(images, (before, after, before, after), mode="reflect")
        windows = padded.unfold(2, self.window, self.patch_size).unfold(3, self.window, self.patch_size)
        return normalise_contrast(windows.permute(0, 2, 3, 1, 4, 5).flatten(3))
