"""A tokenizer that needs neither fitting nor weights: for tests and smoke runs, and as the floor for any better one."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.errors import TokenizerError
from mapet.registry import check_options
from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.base import Tokenizer, check_size
from mapet.tokenizers.clustering.nearest import nearest_centroid

PROJECTED_DIM = 16
LARGEST_PATCH = 1024


class RandomProjection(Tokenizer):
    """The nearest of `vocab_size` random directions to a random projection of a patch's pixels (BEST-RQ, Chiu et al. 2022).

    Args:
        image_size: Height and width of its images in pixels, a multiple of `patch_size`.
        patch_size: Height and width of a patch.
        vocab_size: Number of tokens.
        seed: Determines the projection and the directions.
    """

    kind = "random_projection"
    has_weights = False
    projection: Tensor
    directions: Tensor

    def __init__(self, image_size: int, patch_size: int, vocab_size: int, seed: int = 0) -> None:
        check_size("patch_size", patch_size, LARGEST_PATCH)
        if min(image_size, patch_size, vocab_size) < 1 or image_size % patch_size:
            raise TokenizerError(
                f"Image size {image_size} must be a multiple of patch size {patch_size}, and the vocabulary ({vocab_size}) at "
                "least 1."
            )
        grid = image_size // patch_size
        super().__init__(vocab_size, (grid, grid), image_size)
        self.patch_size, self.seed = patch_size, seed
        generator = seeded_generator(seed, "random projection")
        projection = torch.randn(3 * patch_size**2, PROJECTED_DIM, generator=generator)
        directions = F.normalize(torch.randn(vocab_size, PROJECTED_DIM, generator=generator), dim=1)
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("directions", directions, persistent=False)
        self.eval()

    def tokens(self, images: Tensor) -> Tensor:
        """Ids (B, gh, gw) int64 of images (B, 3, image_size, image_size) in [0, 1]."""
        patches = F.unfold(images - 0.5, self.patch_size, stride=self.patch_size).mT
        projected = F.normalize(patches @ self.projection, dim=2)
        return nearest_centroid(projected.flatten(0, 1), self.directions).view(len(images), *self.grid_size)

    def settings(self) -> dict[str, Any]:
        """Sizes and seed; they determine everything."""
        names = ("image_size", "patch_size", "vocab_size", "seed")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Builds it from `settings`."""
        check_options("The tokenizer 'random_projection'", cls, settings, TokenizerError)
        return cls(**settings)
