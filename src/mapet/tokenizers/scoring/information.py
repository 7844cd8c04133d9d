"""Mutual information between codes, in bits, corrected for the bias of small samples.

Mutual information estimated from counts is never 0: pairs of unrelated codes do not spread evenly by chance. What shuffled pairs
seem to share is therefore taken off. Taken off alone, it would punish large vocabularies, whose shuffled pairs are the most biased
(8,192 codes that survive unchanged in 392,000 pairs would keep 5.6 bits of 13); so the rest is stretched until its upper end is
where it was, as in the adjusted mutual information of Vinh, Epps & Bailey (2010): unrelated codes share 0 bits, equal ones their
whole entropy.
"""

from __future__ import annotations

import numpy as np

from mapet.runtime.seeding import derive_seed

SHUFFLES = 3
# Differences between sums of logarithms below this, in bits, are rounding.
_ROUNDING = 1e-9


def entropy(counts: np.ndarray) -> float:
    """Of the distribution that `counts` are drawn from, in bits; 0 where all are 0."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return abs(float((shares * np.log2(shares)).sum()))


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Of two codes, (n,) ids from 0 each, estimated from how often they occur together, in bits; biased upwards."""
    return entropy(np.bincount(first)) + entropy(np.bincount(second)) - _joint_entropy(first, second)


def surviving_information(before: np.ndarray, after: np.ndarray, seed: int) -> float:
    """Mutual information between the tokens of images and those of the same images after a change.

    Shuffled pairs join a patch with the same patch of another image: information of a code about its position in the grid is not
    information about the image.

    Args:
        before: (n, patches) ids.
        after: (n, patches) ids of the same patches.
        seed: Of the shuffles.

    Returns:
        Bits a token: 0 for one code only, for unrelated codes and for codes of places; at most the entropy of the tokens. Unrelated
        codes can come out a little below 0.
    """
    draws = np.random.default_rng(derive_seed(seed, "shuffled tokens"))
    shuffled = [mutual_information(before.ravel(), draws.permuted(after, axis=0).ravel()) for _ in range(SHUFFLES)]
    most = min(entropy(np.bincount(before.ravel())), entropy(np.bincount(after.ravel())))
    return _beyond_chance(mutual_information(before.ravel(), after.ravel()), shuffled, most)


def label_information(ids: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The information of one token about the class of its image; shuffled labels stay with whole images.

    Args:
        ids: (n, patches).
        labels: (n,) class numbers.
        seed: Of the shuffles.

    Returns:
        Bits a token, at most the entropy of the labels.
    """
    draws = np.random.default_rng(derive_seed(seed, "shuffled labels"))
    patches = ids.shape[1]
    tokens, repeated = ids.ravel(), labels.repeat(patches)
    shuffled = [mutual_information(tokens, draws.permutation(labels).repeat(patches)) for _ in range(SHUFFLES)]
    most = min(entropy(np.bincount(tokens)), entropy(np.bincount(labels)))
    return _beyond_chance(mutual_information(tokens, repeated), shuffled, most)


def _beyond_chance(observed: float, shuffled: list[float], most: float) -> float:
    """`observed` on a scale where the mean of `shuffled` is 0 and `most`, which it cannot exceed, stays what it is."""
    by_chance = float(np.mean(shuffled))
    room = most - by_chance
    return (observed - by_chance) * most / room if room > _ROUNDING else 0.0


def _joint_entropy(first: np.ndarray, second: np.ndarray) -> float:
    pairs = first.astype(np.int64) * (int(second.max()) + 1) + second
    return entropy(np.unique(pairs, return_counts=True)[1])
