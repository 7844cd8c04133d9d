"""Scores a tokenizer on images: tokenises them unchanged and after every small change, and makes the scorecard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mapet.data.batch import LoadedBatch
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import sequential_batches
from mapet.data.skipped import UnreadableImages, walk
from mapet.data.source import ImageSource, subset
from mapet.data.views import FixedView
from mapet.errors import DataError
from mapet.runtime.progress import progress
from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.base import Tokenizer
from mapet.tokenizers.clustering.nearest import full_float32
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.scoring.centroids import CentroidDistances
from mapet.tokenizers.scoring.perturbations import PERTURBATIONS, Perturbation
from mapet.tokenizers.scoring.scorecard import Scorecard, make_scorecard

BATCH_SIZE = 64


@dataclass(frozen=True)
class ScoredTokenizer:
    """A tokenizer with its scorecard, and what that was made from.

    Args:
        title: What to call it.
        tokenizer: The tokenizer.
        card: Its scorecard.
        ids: (n, gh, gw) int32, the tokens of all images.
        indices: (n,) int64, where the images are in their source.
    """

    title: str
    tokenizer: Tokenizer
    card: Scorecard
    ids: np.ndarray
    indices: np.ndarray

    @property
    def usage(self) -> np.ndarray:
        """How often every code occurs, (vocab,) int64."""
        return np.bincount(self.ids.ravel(), minlength=self.card.vocab_size)


def draw_images(source: ImageSource, count: int, seed: int) -> ImageSource:
    """At most `count` of the images, a random sample in random order."""
    order = torch.randperm(len(source), generator=seeded_generator(seed, "scorecard images"))
    return subset(source, order[:count].numpy())


def score_tokenizer(
    tokenizer: Tokenizer,
    source: ImageSource,
    *,
    title: str = "tokenizer",
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    unreadable: UnreadableImages | None = None,
) -> ScoredTokenizer:
    """Makes the scorecard of a tokenizer; memory is bounded by one batch and the ids of all images.

    Args:
        tokenizer: Any; it stays on `device`.
        source: The images, for example `draw_images(...)`; the same for tokenizers that are compared.
        title: What to call it.
        seed: Of all draws: changes of images, shuffles, the halves for the classifier.
        device: Where images are changed and tokenised.
        workers: Processes that decode images.
        unreadable: Counts and names the images that cannot be read; by default none may be skipped.

    Raises:
        DataError: There are fewer than two images, or more unreadable ones than `unreadable` allows.
    """
    unreadable = UnreadableImages() if unreadable is None else unreadable
    tokens = _Tokens(tokenizer.to(device), torch.device(device), seed)
    renderer = ViewRenderer(FixedView(tokenizer.image_size, tokenizer.interpolation))
    loader = make_loader(source, renderer, sequential_batches(len(source), BATCH_SIZE), workers, device)
    read = 0
    for batch in walk(f"Scoring {title}", loader, len(source), unreadable):
        if batch.keys:
            tokens.add(batch)
        read += len(batch.keys)
    if read < 2:
        raise DataError(f"{read} of the images of {source.location} can be used; a scorecard needs at least 2.")
    with progress(f"Comparing the tokens of {title}", 1, after=2.0):
        return tokens.scored(title)


class _Tokens:
    """Tokens of all images, as they are and after every change; grows batch by batch."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device, seed: int) -> None:
        self.tokenizer, self.device, self.seed = tokenizer, device, seed
        self.changes = [change for change in PERTURBATIONS if min(tokenizer.grid_size) >= change.least_grid]
        self._ids: list[np.ndarray] = []
        self._changed: dict[Perturbation, list[np.ndarray]] = {change: [] for change in self.changes}
        self._labels: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._distances = None
        if isinstance(tokenizer, FeatureKMeans) and tokenizer.vocab_size > 1:
            self._distances = CentroidDistances(tokenizer.centroids)

    def add(self, batch: LoadedBatch) -> None:
        """Tokenises one batch, unreadable images left out."""
        images = batch.images.to(self.device, non_blocking=True).float() / 255
        patch = self.tokenizer.image_size // self.tokenizer.grid_size[0]
        self._ids.append(self._encode(images))
        for change, parts in self._changed.items():
            parts.append(self._encode(change(images, batch.keys, self.seed, patch)))
        if self._distances is not None and isinstance(self.tokenizer, FeatureKMeans):
            with torch.no_grad(), full_float32(self.device):
                self._distances.add(self.tokenizer.features(images))
        self._indices.append(batch.indices)
        self._labels += [] if batch.labels is None else [batch.labels]

    def _encode(self, images: Tensor) -> np.ndarray:
        return self.tokenizer.encode(images).to("cpu", torch.int32).numpy()

    def scored(self, title: str) -> ScoredTokenizer:
        """The scorecard."""
        ids = np.concatenate(self._ids)
        changed = {change: np.concatenate(parts) for change, parts in self._changed.items()}
        labels = torch.cat(self._labels).numpy() if self._labels else None
        centroids = None if self._distances is None else self._distances.score()
        card = make_scorecard(ids, self.tokenizer.vocab_size, changed, labels, centroids, self.seed)
        return ScoredTokenizer(title, self.tokenizer, card, ids, torch.cat(self._indices).numpy())
