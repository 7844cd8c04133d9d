"""Every statistic against the plainest reference there is."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from mapet.tokenizers.scoring.information import entropy, label_information, surviving_information
from mapet.tokenizers.scoring.perturbations import Flip, Noise, PatchShift, SmallShift
from mapet.tokenizers.scoring.scorecard import Scorecard, image_entropies, make_scorecard, neighbour_agreement

VOCABULARY = 9


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    draws = np.random.default_rng(0)
    return draws.choice(VOCABULARY, (12, 3, 4), p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0, 0, 0])


@pytest.fixture(scope="module")
def after(ids) -> np.ndarray:
    draws = np.random.default_rng(1)
    return np.where(draws.random(ids.shape) < 0.6, ids, draws.choice(6, ids.shape))


@pytest.fixture(scope="module")
def card(ids, after) -> Scorecard:
    return make_scorecard(ids, VOCABULARY, {Flip(): after, Noise(): ids, SmallShift(): after, PatchShift(): after})


def naive_entropy(codes: list[int]) -> float:
    return -sum(n / len(codes) * math.log2(n / len(codes)) for n in Counter(codes).values())


def test_usage_is_counted(card, ids):
    counts = Counter(ids.ravel().tolist())
    assert (card.images, card.grid_size, card.tokens, card.vocab_size) == (12, (3, 4), 144, 9)
    assert (card.used, card.dead) == (len(counts), 9 - len(counts)) == (6, 3)
    assert card.entropy == pytest.approx(naive_entropy(ids.ravel().tolist()))
    assert card.perplexity == pytest.approx(2**card.entropy)
    assert card.largest_share == pytest.approx(max(counts.values()) / 144)


@pytest.mark.parametrize(("vocabulary", "tokens"), [(2, 4), (3, 4)])
def test_unused_by_chance_is_the_mean_over_all_possible_tokens(vocabulary, tokens):
    unused = [vocabulary - len(set(codes)) for codes in product(range(vocabulary), repeat=tokens)]
    card = make_scorecard(np.zeros((2, 1, tokens // 2), int), vocabulary, {Noise(): np.zeros((2, 1, tokens // 2), int)})
    assert card.dead_by_chance == pytest.approx(np.mean(unused))


def test_entropy_of_every_image(card, ids):
    expected = [naive_entropy(image.ravel().tolist()) for image in ids]
    np.testing.assert_allclose(image_entropies(ids.astype(np.int32)), expected)
    assert card.image_entropy == pytest.approx(np.mean(expected))
    assert card.image_entropy_deviation == pytest.approx(np.std(expected))


def test_neighbours(card, ids):
    pairs = [(image[r, c], image[r, c + 1]) for image in ids for r in range(3) for c in range(3)]
    pairs += [(image[r, c], image[r + 1, c]) for image in ids for r in range(2) for c in range(4)]
    assert card.neighbours_agree == pytest.approx(np.mean([one == other for one, other in pairs]))
    everything = ids.ravel().tolist()
    assert card.neighbours_by_chance == pytest.approx(np.mean([one == other for one, other in product(everything, repeat=2)]))
    assert neighbour_agreement(ids[:, :1, :1]) is None


def test_survival_compares_corresponding_patches(card, ids, after):
    places = list(product(range(12), range(3), range(4)))
    flipped = np.mean([ids[i, r, c] == after[i, r, 3 - c] for i, r, c in places])
    shifted = np.mean([ids[i, r, c] == after[i, r, c] for i, r, c in places if r and c])
    moved = np.mean([ids[i, r - 1, c - 1] == after[i, r, c] for i, r, c in places if r and c])
    found = {name: entry.same for name, entry in card.survival.items()}
    assert found == pytest.approx({"flip": flipped, "noise": 1.0, "shift": shifted, "patch shift": moved})
    assert card.survival["flip"].information == surviving_information(
        ids.reshape(12, 12), after[:, :, ::-1].reshape(12, 12), seed=0
    )
    assert card.survival["noise"].information == pytest.approx(card.entropy)


def test_rank_is_the_mean_over_changes_of_pixels(card):
    ranked = [card.survival[name].information for name in ("flip", "noise", "shift")]
    assert card.information == pytest.approx(np.mean(ranked))
    assert not card.survival["patch shift"].ranked


def test_labels(ids):
    draws = np.random.default_rng(2)
    labels = draws.integers(0, 3, 300) * 5
    told = np.where(draws.random((300, 2, 2)) < 0.9, labels[:, None, None] // 5, draws.integers(0, 3, (300, 2, 2)))
    score = make_scorecard(told, 3, {Noise(): told}, labels).labels
    assert score is not None
    assert score.classes == 3
    assert score.information == label_information(told.reshape(300, 4), labels // 5, 0)
    assert score.information < entropy(np.bincount(labels // 5))
    assert score.accuracy > 0.95
    assert score.by_chance < 0.5


def test_labels_of_which_tokens_tell_nothing():
    draws = np.random.default_rng(3)
    labels, told = draws.integers(0, 4, 2000), draws.integers(0, 6, (2000, 2, 2))
    score = make_scorecard(told, 6, {Noise(): told}, labels).labels
    assert score is not None
    assert abs(score.information) < 0.005
    assert abs(score.accuracy - 0.25) < 0.05


def test_naive_bayes_learns_on_one_half_only():
    labels = np.repeat(np.arange(10), 2)
    told = np.arange(20).reshape(20, 1, 1).repeat(2, 1)  # every image has a code of its own
    score = make_scorecard(told, 20, {Noise(): told}, labels).labels
    assert score is not None
    assert score.accuracy <= 0.3


def test_one_class_is_no_label(ids):
    assert make_scorecard(ids, VOCABULARY, {Noise(): ids}, np.ones(12, int)).labels is None
    assert make_scorecard(ids, VOCABULARY, {Noise(): ids}).labels is None
