"""The prediction of visual tokens without the image: frequencies, overall or at each position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mapet.data.source import ImageSource
from mapet.runtime.processes import all_sum_
from mapet.runtime.rank import this_process_is_first
from mapet.token_store.keys import image_keys
from mapet.token_store.read import TokenStore

COUNTED_IMAGES = 50_000
_CHUNK = 2_000


@dataclass(frozen=True)
class TokenFloor:
    """The loss and accuracy of a guess without the image.

    Args:
        entropy: Of the token frequencies, in nats: the loss of always predicting these frequencies.
        accuracy: Of always predicting the most frequent token, 0 to 1.
        entropy_by_position: The same with the frequencies at each position, in nats, with Miller and Madow's correction for few
            images; None where there are fewer images than tokens in the vocabulary, which would not do to estimate it.
    """

    entropy: float
    accuracy: float
    entropy_by_position: float | None

    def bits_gained(self, loss: float) -> float:
        """How far a loss in nats a token lies below the entropy of the frequencies, in bits."""
        return (self.entropy - loss) / math.log(2)

    def as_tensor(self) -> Tensor:
        """Its numbers (3,), NaN for the one that is not known."""
        by_position = math.nan if self.entropy_by_position is None else self.entropy_by_position
        return torch.tensor([self.entropy, self.accuracy, by_position], dtype=torch.float64)

    @classmethod
    def of_tensor(cls, numbers: Tensor) -> TokenFloor:
        """The floor that `as_tensor` gave."""
        entropy, accuracy, by_position = numbers.tolist()
        return cls(entropy, accuracy, None if math.isnan(by_position) else by_position)


def floor_of(counts: np.ndarray) -> TokenFloor:
    """The floor of tokens counted by position, (N_p, vocab)."""
    totals = counts.sum(axis=0)
    images = int(counts[0].sum())
    by_position = None
    if images >= counts.shape[1]:
        missed = ((counts > 0).sum(axis=1) - 1) / (2 * images)
        by_position = float(np.mean([_entropy(row) for row in counts] + missed))
    return TokenFloor(_entropy(totals), float(totals.max() / totals.sum()), by_position)


def count_stored(store: TokenStore, source: ImageSource) -> np.ndarray:
    """How often every token occurs at every position, (N_p, vocab) int64, in all views of the images that are trained on.

    Of more than `COUNTED_IMAGES` images, fewer are counted, evenly over the source.
    """
    keys = np.array(image_keys(source)[:: _stride(len(source))])
    keys = keys[store.contains(keys.tolist())].tolist()
    counts = np.zeros((math.prod(store.grid_size), store.vocab_size), np.int64)
    for start in range(0, len(keys), _CHUNK):
        for view in range(store.num_views or 1):
            _count(counts, store.lookup(keys[start : start + _CHUNK], view).flatten(1).numpy())
    return counts


def count_all(store: TokenStore) -> np.ndarray:
    """The same of all images in the store."""
    counts = np.zeros((math.prod(store.grid_size), store.vocab_size), np.int64)
    rows = store.ids[:: _stride(len(store))]
    for start in range(0, len(rows), _CHUNK):
        _count(counts, np.asarray(rows[start : start + _CHUNK], np.int64).reshape(-1, len(counts)))
    return counts


def _stride(images: int) -> int:
    return max(1, math.ceil(images / COUNTED_IMAGES))


def _count(counts: np.ndarray, ids: np.ndarray) -> None:
    """Adds tokens (n, N_p) to counts (N_p, vocab)."""
    cells = ids + np.arange(len(counts)) * counts.shape[1]
    counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)


class RunningCounts:
    """The same of tokens that no store holds, counted on the device as they come by.

    Args:
        num_patches: N_p.
        vocab_size: Number of tokens.
        device: Where they come by.
    """

    def __init__(self, num_patches: int, vocab_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_patches * vocab_size, dtype=torch.int32, device=device)
        self._first_cell = torch.arange(num_patches, device=device) * vocab_size
        self._shape = num_patches, vocab_size

    def add(self, token_ids: Tensor) -> None:
        """Counts tokens (B, N_p) without waiting for the device."""
        cells = (token_ids + self._first_cell).flatten()
        self.counts.scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))

    def total(self) -> Tensor:
        """Those of all processes, (N_p * vocab,) int32; every process calls it."""
        return all_sum_(self.counts.clone())

    def read(self) -> np.ndarray:
        """Those of all processes, (N_p, vocab) int64; waits for the device."""
        return self.total().cpu().numpy().astype(np.int64).reshape(self._shape)

    def restore(self, total: Tensor) -> None:
        """Continues from the `total` of a checkpoint."""
        self.counts.copy_(total if this_process_is_first() else torch.zeros_like(total))


def _entropy(counts: np.ndarray) -> float:
    """Of the distribution that `counts` (vocab,) are drawn from, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
