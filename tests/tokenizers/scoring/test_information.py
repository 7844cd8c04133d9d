from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from mapet.tokenizers.scoring.information import entropy, label_information, mutual_information, surviving_information


def naive_mutual_information(first: list[int], second: list[int]) -> float:
    total = len(first)
    ones, others, pairs = Counter(first), Counter(second), Counter(zip(first, second, strict=True))
    return sum(n / total * math.log2(n * total / (ones[one] * others[other])) for (one, other), n in pairs.items())


def through_channel(vocabulary: int, images: int, kept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Equally frequent codes before and after a channel that keeps some and redraws the others, and the bits it lets through."""
    draws = np.random.default_rng(seed)
    before, other = draws.integers(0, vocabulary, (2, images, 16))
    after = np.where(draws.random(before.shape) < kept, before, other)
    same = kept / vocabulary + (1 - kept) / vocabulary**2
    bits = vocabulary * same * math.log2(same * vocabulary**2)
    if kept < 1:
        bits += (1 - kept) * (1 - 1 / vocabulary) * math.log2(1 - kept)
    return before, after, bits


@pytest.mark.parametrize("counts", [[3, 1, 0, 4], [5], [1, 1, 1, 1], [7, 0, 0]])
def test_entropy_is_that_of_the_definition(counts):
    shares = [count / sum(counts) for count in counts if count]
    assert entropy(np.array(counts)) == pytest.approx(-sum(share * math.log2(share) for share in shares), abs=1e-12)


def test_entropy_of_nothing_is_0():
    assert entropy(np.zeros(4, int)) == 0


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 2), (5, 9), (40, 3)])
def test_mutual_information_equals_naive_and_published(first, second):
    draws = np.random.default_rng(first)
    one, other = draws.integers(0, first, 60), draws.integers(0, second, 60)
    found = mutual_information(one.astype(np.int32), other.astype(np.int32))
    assert found == pytest.approx(naive_mutual_information(one.tolist(), other.tolist()), abs=1e-12)
    assert found == pytest.approx(mutual_info_score(one, other) / math.log(2), abs=1e-9)


def test_mutual_information_of_many_codes_does_not_overflow():
    codes = np.array([0, 65_535, 65_534, 65_535], np.uint16)
    assert mutual_information(codes, codes) == pytest.approx(1.5)


def test_corrected_information_is_that_of_its_definition():
    draws = np.random.default_rng(1)
    before, after = draws.integers(0, 4, (2, 30, 6))
    after = np.where(draws.random(after.shape) < 0.5, before, after) // 2
    seen = []

    class Recorded:
        """Shuffles every column by itself and remembers what came out."""

        def permuted(self, array: np.ndarray, axis: int) -> np.ndarray:
            assert axis == 0
            columns = [np.random.default_rng(len(seen) * 10 + at).permutation(array[:, at]) for at in range(array.shape[1])]
            seen.append(np.stack(columns, axis=1))
            return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda seed, real=np.random.default_rng: Recorded() if seed > 10**6 else real(seed))
        found = surviving_information(before, after, seed=0)
    flat = before.ravel().tolist()
    plain = naive_mutual_information(flat, after.ravel().tolist())
    chance = np.mean([naive_mutual_information(flat, shuffled.ravel().tolist()) for shuffled in seen])
    most = min(naive_mutual_information(flat, flat), naive_mutual_information(*[after.ravel().tolist()] * 2))
    assert len(seen) == 3
    assert found == pytest.approx((plain - chance) / (most - chance) * most)


@pytest.mark.parametrize("vocabulary", [16, 512, 8192])
def test_unchanged_codes_keep_their_entropy_however_many_there_are(vocabulary):
    before, after, _ = through_channel(vocabulary, 1000, kept=1)
    assert surviving_information(before, after, 0) == pytest.approx(entropy(np.bincount(before.ravel())))


@pytest.mark.parametrize("vocabulary", [16, 512, 8192])
def test_unrelated_codes_keep_nothing(vocabulary):
    before, after, _ = through_channel(vocabulary, 1000, kept=0)
    assert mutual_information(before.ravel(), after.ravel()) > 0.005
    assert surviving_information(before, after, 0) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("vocabulary", "tolerance"), [(16, 0.02), (128, 0.25), (512, 0.4)])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_half_kept_codes_keep_what_the_channel_lets_through(vocabulary, tolerance, kept):
    before, after, bits = through_channel(vocabulary, 2000, kept)
    assert surviving_information(before, after, 0) == pytest.approx(bits, abs=tolerance)


def test_one_code_and_codes_of_places_keep_nothing():
    places = np.tile(np.arange(16), (50, 1))
    assert surviving_information(np.full((50, 16), 7), np.full((50, 16), 7), 0) == 0
    assert surviving_information(places, places, 0) == 0
    assert surviving_information(places, places[:, ::-1], 0) == 0


def test_renamed_codes_lose_nothing():
    before = np.random.default_rng(0).integers(0, 8, (200, 16))
    assert surviving_information(before, 7 - before, 0) == pytest.approx(entropy(np.bincount(before.ravel())))


def test_label_information_counts_images_and_not_tokens():
    plain, corrected = [], []
    for seed in range(8):
        draws = np.random.default_rng(seed)
        labels = draws.integers(0, 4, 400)
        by_image = np.tile(draws.integers(0, 40, 400)[:, None], 16)  # all tokens of an image are the same, and tell nothing
        plain.append(mutual_information(by_image.ravel(), labels.repeat(16)))
        corrected.append(label_information(by_image, labels, 0))
    assert np.mean(plain) > 0.2
    assert abs(np.mean(corrected)) < 0.05


def test_label_information_of_a_token_that_is_the_label():
    labels = np.random.default_rng(0).integers(0, 4, 400)
    assert label_information(np.tile(labels[:, None], 16), labels, 0) == pytest.approx(entropy(np.bincount(labels)))


def test_seed_decides():
    before, after, _ = through_channel(32, 50, kept=0.5)
    assert surviving_information(before, after, 1) == surviving_information(before, after, 1)
    assert surviving_information(before, after, 1) != surviving_information(before, after, 2)
