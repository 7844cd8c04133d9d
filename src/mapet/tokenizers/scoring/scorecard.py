"""The scorecard of a tokenizer: the use of its codes, their stability under small changes of an image, and their information.

Of all this one figure ranks tokenizers, the information that survives: bits that the token of a patch still tells about it when the
image was flipped, recoloured, shifted by an eighth of a patch or made noisy. Stability alone would praise a codebook that has
collapsed to one code, entropy alone one that draws its codes at random; both keep 0 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.scoring.centroids import CentroidScore
from mapet.tokenizers.scoring.information import entropy, label_information, surviving_information
from mapet.tokenizers.scoring.perturbations import Perturbation


@dataclass(frozen=True)
class Survival:
    """How tokens take a change of their image.

    Args:
        same: Share of tokens that stay the same, 0 to 1.
        information: Mutual information with the token before the change, in bits; see `surviving_information`.
        ranked: Whether it counts for the rank.
    """

    same: float
    information: float
    ranked: bool


@dataclass(frozen=True)
class LabelScore:
    """The information of tokens about the class of their image.

    Args:
        classes: That occur.
        information: Bits a token; see `label_information`.
        accuracy: Of a naive Bayes classifier that counts the tokens of an image: fitted on one half of the images, tested on the
            other.
        by_chance: Accuracy of always answering the class that is most frequent in the first half.
    """

    classes: int
    information: float
    accuracy: float
    by_chance: float


@dataclass(frozen=True)
class Scorecard:
    """Everything that is measured; entropies and information in bits.

    Args:
        images: Number of images.
        grid_size: Tokens an image, from top to bottom and from left to right.
        vocab_size: Codes there are.
        used: Codes that occur.
        dead: Codes that do not.
        dead_by_chance: Of as many codes as there are, all drawn equally often, so many would not occur among as many tokens.
        entropy: Of a token.
        perplexity: Codes that would have this entropy if all were used equally.
        image_entropy: Entropy of the tokens of one image; mean over the images.
        image_entropy_deviation: Its standard deviation over the images.
        largest_share: Share of the most frequent code among all tokens.
        neighbours_agree: Share of horizontal and vertical neighbours with the same token; None with a single patch.
        neighbours_by_chance: What it would be if tokens were drawn at random as often as they occur.
        information: Mean over the ranked changes of the information that survives; None if there are none.
        survival: By the name of the change.
        labels: None where images have no labels, or all have the same.
        centroids: None where tokens are not clusters of features.
    """

    images: int
    grid_size: tuple[int, int]
    vocab_size: int
    used: int
    dead: int
    dead_by_chance: float
    entropy: float
    perplexity: float
    image_entropy: float
    image_entropy_deviation: float
    largest_share: float
    neighbours_agree: float | None
    neighbours_by_chance: float
    information: float
    survival: dict[str, Survival]
    labels: LabelScore | None
    centroids: CentroidScore | None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.images * self.grid_size[0] * self.grid_size[1]


class Judged(Protocol):
    """A tokenizer by its title, with its scorecard."""

    @property
    def title(self) -> str:
        """What to call it."""
        ...

    @property
    def card(self) -> Scorecard:
        """Its scorecard."""
        ...


def make_scorecard(
    ids: np.ndarray,
    vocab_size: int,
    changed: Mapping[Perturbation, np.ndarray],
    labels: np.ndarray | None = None,
    centroids: CentroidScore | None = None,
    seed: int = 0,
) -> Scorecard:
    """The scorecard of tokens that were computed before.

    Args:
        ids: (n, gh, gw) integers from 0 to vocab_size - 1, the tokens of n images.
        vocab_size: Codes there are.
        changed: The tokens of the same images after every change, shaped like `ids`.
        labels: (n,) class numbers, or None.
        centroids: Distances, where there are any.
        seed: Of shuffles and of the halves for the classifier.
    """
    usage, per_image = np.bincount(ids.ravel(), minlength=vocab_size), image_entropies(ids)
    bits, used = entropy(usage), int((usage > 0).sum())
    survival = {change.name: _survival(ids, after, change, seed) for change, after in changed.items()}
    ranked = [entry.information for entry in survival.values() if entry.ranked]
    return Scorecard(
        images=len(ids),
        grid_size=(ids.shape[1], ids.shape[2]),
        vocab_size=vocab_size,
        used=used,
        dead=vocab_size - used,
        dead_by_chance=vocab_size * (1 - 1 / vocab_size) ** ids.size,
        entropy=bits,
        perplexity=2**bits,
        image_entropy=float(per_image.mean()),
        image_entropy_deviation=float(per_image.std()),
        largest_share=float(usage.max() / ids.size),
        neighbours_agree=neighbour_agreement(ids),
        neighbours_by_chance=float(((usage / ids.size) ** 2).sum()),
        information=float(np.mean(ranked)),
        survival=survival,
        labels=None if labels is None else _label_score(ids.reshape(len(ids), -1), vocab_size, labels, seed),
        centroids=centroids,
    )


def image_entropies(ids: np.ndarray) -> np.ndarray:
    """(n,) entropies in bits of the tokens of each image, ids (n, gh, gw)."""
    images, patches = len(ids), ids[0].size
    keys = np.arange(images)[:, None] * (int(ids.max()) + 1) + ids.reshape(images, patches)
    pairs, counts = np.unique(keys, return_counts=True)
    image = pairs // (int(ids.max()) + 1)
    return np.bincount(image, weights=counts / patches * np.log2(patches / counts), minlength=images)


def neighbour_agreement(ids: np.ndarray) -> float | None:
    """Share of horizontal and vertical neighbours in ids (n, gh, gw) that are equal; None with a single patch."""
    beside, below = ids[:, :, 1:] == ids[:, :, :-1], ids[:, 1:] == ids[:, :-1]
    pairs = beside.size + below.size
    return float((beside.sum() + below.sum()) / pairs) if pairs else None


def _survival(ids: np.ndarray, after: np.ndarray, change: Perturbation, seed: int) -> Survival:
    before, after = (part.reshape(len(ids), -1) for part in change.align(ids, after))
    return Survival(float((before == after).mean()), surviving_information(before, after, seed), change.changes_pixels)


def _label_score(ids: np.ndarray, vocab_size: int, labels: np.ndarray, seed: int) -> LabelScore | None:
    """None where there is only one class."""
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return None
    accuracy, by_chance = _bag_of_tokens(ids, vocab_size, numbers, seed)
    return LabelScore(len(classes), label_information(ids, numbers, seed), accuracy, by_chance)


def _bag_of_tokens(ids: np.ndarray, vocab_size: int, labels: np.ndarray, seed: int) -> tuple[float, float]:
    """Accuracy of naive Bayes on token counts on the second of two random halves, and that of the first half's commonest class."""
    from scipy.sparse import csr_matrix
    from sklearn.naive_bayes import MultinomialNB

    images, patches = ids.shape
    ends = np.arange(0, ids.size + 1, patches)
    counts = csr_matrix((np.ones(ids.size), ids.ravel(), ends), shape=(images, vocab_size))
    order = torch.randperm(images, generator=seeded_generator(seed, "scorecard halves")).numpy()
    learned, tested = order[: images // 2], order[images // 2 :]
    classifier = MultinomialNB().fit(counts[learned], labels[learned])
    commonest = np.bincount(labels[learned]).argmax()
    return float(classifier.score(counts[tested], labels[tested])), float((labels[tested] == commonest).mean())
