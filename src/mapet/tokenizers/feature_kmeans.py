"""Tokens as clusters of patch features: the recipe of k-CLIP, with any features."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from mapet.config.architecture import LARGEST_VOCABULARY
from mapet.errors import TokenizerError
from mapet.registry import check_options
from mapet.tokenizers.base import Tokenizer, check_size
from mapet.tokenizers.clustering.nearest import nearest_centroid
from mapet.tokenizers.features.base import FeatureExtractor, restore_features


class FeatureKMeans(Tokenizer):
    """The token of a patch is the id of the centroid nearest to its feature, in Euclidean distance.

    Args:
        features: A fitted extractor of patch features.
        centroids: (vocab_size, features.dim) float32.

    Raises:
        TokenizerError: The centroids are those of other features.
    """

    kind = "feature_kmeans"
    centroids: Tensor

    def __init__(self, features: FeatureExtractor, centroids: Tensor) -> None:
        if centroids.ndim != 2 or centroids.shape[1] != features.dim:
            raise TokenizerError(
                f"A codebook of shape {tuple(centroids.shape)} does not fit these features, which have {features.dim} values. Give "
                f"one of (tokens, {features.dim}), clustered from the same features."
            )
        super().__init__(len(centroids), features.grid_size, features.image_size)
        self.features = features
        self.register_buffer("centroids", centroids)
        self.eval().requires_grad_(False)

    def tokens(self, images: Tensor) -> Tensor:
        """Ids (B, gh, gw) int64 of images (B, 3, image_size, image_size) in [0, 1]."""
        features = self.features(images)
        return nearest_centroid(features.flatten(0, 2), self.centroids).view(features.shape[:3])

    def settings(self) -> dict[str, Any]:
        """Vocabulary and features; the version of their code is there for the fingerprint."""
        features = self.features
        return {"vocab_size": self.vocab_size, "features": features.settings(), "features_version": features.code_version}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Builds it from `settings`, with centroids that are NaN until they are loaded."""
        check_options("The tokenizer 'feature_kmeans'", cls._restore, settings, TokenizerError)
        return cls._restore(**settings)

    @classmethod
    def _restore(cls, vocab_size: int, features: dict[str, Any], features_version: int) -> Self:
        """Builds it from what `settings` holds; the version counts in the fingerprint alone."""
        check_size("vocab_size", vocab_size, LARGEST_VOCABULARY)
        extractor = restore_features(features)
        return cls(extractor, torch.full((vocab_size, extractor.dim), float("nan")))
