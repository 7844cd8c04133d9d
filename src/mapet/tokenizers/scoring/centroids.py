"""How well the centroids of a k-means tokenizer lie among the patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mapet.tokenizers.clustering.nearest import chunks, full_float32


@dataclass(frozen=True)
class CentroidScore:
    """Distances in the space of the features.

    Args:
        own_distance: Mean distance of a patch to its centroid, relative to the mean distance between two centroids.
        margin: Mean of 1 - nearest / second nearest distance: 0 where patches lie between codes, 1 where they lie on them.
        far_codes: Codes that no patch is near: even the nearest one is farther away than patches are from their own on average.
    """

    own_distance: float
    margin: float
    far_codes: int


class CentroidDistances:
    """Adds up distances of features to centroids, chunk by chunk.

    Args:
        centroids: (k, d) float32, k at least 2; its device does the work.
    """

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids
        self._points = 0
        self._distance_sum = self._margin_sum = 0.0
        self._nearest_point = torch.full((len(centroids),), float("inf"), device=centroids.device)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Takes features (..., d) into account."""
        features = features.flatten(0, -2)
        with full_float32(self.centroids.device):
            for rows in chunks(len(features), max(self.centroids.shape), self.centroids.device):
                distances = torch.cdist(features[rows], self.centroids)
                nearest, second = distances.topk(2, largest=False).values.cpu().double().unbind(1)
                self._distance_sum += float(nearest.sum())
                self._margin_sum += float((1 - nearest / second.clamp_min(torch.finfo(torch.float32).tiny)).sum())
                self._nearest_point = torch.minimum(self._nearest_point, distances.amin(0))
        self._points += len(features)

    def score(self) -> CentroidScore:
        """What was added so far, at least one feature."""
        mean_distance = self._distance_sum / self._points
        between = self._mean_between()
        return CentroidScore(
            own_distance=mean_distance / between if between else float("inf"),
            margin=self._margin_sum / self._points,
            far_codes=int((self._nearest_point > mean_distance).sum()),
        )

    def _mean_between(self) -> float:
        """The mean distance between two different centroids."""
        k, device = len(self.centroids), self.centroids.device
        with full_float32(device):
            sums = [torch.cdist(self.centroids[rows], self.centroids).sum(1).cpu().double().sum() for rows in chunks(k, k, device)]
        return float(sum(sums)) / (k * (k - 1))
