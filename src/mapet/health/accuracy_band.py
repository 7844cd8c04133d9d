"""The token accuracy to expect of a run, from its tokens alone and before it begins.

How well tokens can be predicted depends on the tokenizer more than on the model: neighbouring patches may nearly fix each other's
tokens, or depend little on them. So the reference is the best guess from one neighbour, and an accuracy is given in units of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mapet.data.source import ImageSource
from mapet.token_store.keys import image_keys
from mapet.token_store.read import TokenStore

SAMPLED_IMAGES = 5_000
EXPECTED_FACTORS = (0.5, 2.0)  # of a neighbour's accuracy; docs/vital_signs.md names the runs behind it
_LEAKING = 0.9  # of the way from a neighbour's accuracy to 1


@dataclass(frozen=True)
class AccuracyBand:
    """What token accuracies mean, for one set of tokens.

    Args:
        frequent: Accuracy of always guessing the most frequent token, 0 to 1.
        neighbour: That of the best guess from one known neighbour, mean over the four directions.
    """

    frequent: float
    neighbour: float

    @property
    def expected_range(self) -> tuple[float, float]:
        """Where sound runs end."""
        low, high = (factor * self.neighbour for factor in EXPECTED_FACTORS)
        return max(low, self.frequent), min(max(high, self.frequent), self.leaking)

    @property
    def leaking(self) -> float:
        """Above it, targets are given away rather than predicted."""
        return self.neighbour + _LEAKING * (1 - self.neighbour)

    def expectation_message(self) -> str:
        """For the beginning of a run."""
        return (
            f"Token accuracy to expect: {self.frequent:.1%} is the most frequent token everywhere, {self.neighbour:.1%} the best "
            f"guess from one neighbour; sound runs end at {_span(*self.expected_range)}."
        )

    def outcome_message(self, accuracy: float) -> str:
        """For the end of a run."""
        low, high = self.expected_range
        position = "below it: short, or slow to learn" if accuracy < low else "above it" if accuracy > high else "within"
        return f"Token accuracy at the end: {accuracy:.1%}; sound runs with such tokens end at {_span(low, high)} ({position})."


def band_of(grids: np.ndarray, vocab_size: int) -> AccuracyBand | None:
    """The band of tokens (n, h, w) int64; None where there are no neighbours or fewer than two images.

    Pairs are counted on every other image and tested on those between, so that rare pairs do not inflate the accuracy.
    """
    counted, tested = grids[::2], grids[1::2]
    if not len(tested) or min(grids.shape[1:]) < 2:
        return None
    frequent = int(np.bincount(counted.ravel(), minlength=vocab_size).argmax())
    shares = []
    for before, after in ((np.s_[:, :, :-1], np.s_[:, :, 1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        for beside, here in ((before, after), (after, before)):
            guess = _best_guesses(counted[beside].ravel(), counted[here].ravel(), vocab_size, frequent)
            shares.append(float((guess[tested[beside]] == tested[here]).mean()))
    return AccuracyBand(float((tested == frequent).mean()), float(np.mean(shares)))


def stored_band(store: TokenStore, source: ImageSource) -> AccuracyBand | None:
    """That of the first view of the images that are trained on, of up to `SAMPLED_IMAGES` of them, evenly over the source."""
    keys = np.array(image_keys(source)[:: stride(len(source))])
    keys = keys[store.contains(keys.tolist())].tolist()
    return band_of(store.lookup(keys, 0).numpy().reshape(len(keys), *store.grid_size), store.vocab_size)


def stride(images: int) -> int:
    """Every how many-th image is sampled, so that at most `SAMPLED_IMAGES` are."""
    return max(1, math.ceil(images / SAMPLED_IMAGES))


def _best_guesses(beside: np.ndarray, here: np.ndarray, vocab_size: int, otherwise: int) -> np.ndarray:
    """(vocab,) the token most often found beside each token; `otherwise` beside those that do not occur."""
    pairs, counts = np.unique(beside * vocab_size + here, return_counts=True)
    pairs = pairs[np.lexsort((counts, pairs // vocab_size))]
    last = np.flatnonzero(np.diff(pairs // vocab_size, append=vocab_size))
    guesses = np.full(vocab_size, otherwise)
    guesses[pairs[last] // vocab_size] = pairs[last] % vocab_size
    return guesses


def _span(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %"
