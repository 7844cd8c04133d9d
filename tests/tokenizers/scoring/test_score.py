"""Planted tokenizers must be found out: what has collapsed, draws at random or tells places comes last."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from mapet.data.decode import decode_image
from mapet.data.skipped import UnreadableImages
from mapet.data.source import subset
from mapet.data.sources import open_source
from mapet.data.views import FixedView
from mapet.errors import DataError
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import create_features
from mapet.tokenizers.random_projection import RandomProjection
from mapet.tokenizers.scoring import score as scoring
from mapet.tokenizers.scoring.score import ScoredTokenizer, draw_images, score_tokenizer
from tests.tokenizers.planted import GRID, Collapsed, ColoredImages, Colors, Hashed, Listed, Places


@pytest.fixture(scope="module")
def colored() -> ColoredImages:
    return ColoredImages(150)


@pytest.fixture(scope="module")
def fitted() -> FeatureKMeans:
    view, source = FixedView(32), open_source("digits")
    images = torch.stack([view(decode_image(source.read(index))) for index in range(300)]) / 255
    features = create_features("pixels", image_size=32, patch_size=8, dim=16)
    features.fit(images, torch.Generator().manual_seed(0))
    points = features(images).flatten(0, 2).numpy()
    centroids = KMeans(32, n_init=1, max_iter=20, random_state=0).fit(points).cluster_centers_
    return FeatureKMeans(features, torch.from_numpy(centroids).float())


def test_perfect_codes_survive_everything(colored):
    scored = score_tokenizer(Colors(3), colored)
    np.testing.assert_array_equal(scored.ids, colored.colors)
    assert {entry.same for entry in scored.card.survival.values()} == {1.0}
    assert scored.card.information == pytest.approx(scored.card.entropy, abs=1e-3)
    assert scored.card.entropy == pytest.approx(np.log2(3), abs=0.01)
    assert scored.card.dead == 0


def test_collapsed_codes_are_stable_and_tell_nothing(colored):
    card = score_tokenizer(Collapsed(8), colored).card
    assert {entry.same for entry in card.survival.values()} == {1.0}
    assert {entry.information for entry in card.survival.values()} == {0.0}
    assert (card.information, card.entropy, card.perplexity, card.used, card.dead) == (0, 0, 1, 1, 7)
    assert card.largest_share == card.neighbours_agree == card.neighbours_by_chance == 1


def test_codes_of_places_are_stable_and_tell_nothing(colored):
    card = score_tokenizer(Places(GRID**2), colored).card
    assert card.survival["noise"].same == 1
    assert card.entropy == 4
    assert card.information == 0


def test_random_codes_use_everything_and_tell_nothing(colored):
    card = score_tokenizer(Hashed(8), colored).card
    assert card.dead == 0
    assert card.entropy > 2.99
    assert card.information == pytest.approx(0, abs=0.02)
    for name in ("flip", "jitter", "shift", "noise"):
        assert card.survival[name].same == pytest.approx(1 / 8, abs=0.03)
    assert card.survival["patch shift"].same == 1  # the pixels of a patch are the same: why it is not ranked


def test_collapsed_and_random_tokenizers_rank_last_on_real_images(fitted):
    source = draw_images(open_source("digits"), 300, seed=0)
    tokenizers = {
        "fitted": fitted,
        "projected": RandomProjection(32, 8, 32),
        "collapsed": Collapsed(32),
        "hashed": Hashed(32),
        "places": Places(GRID**2),
    }
    kept = {name: score_tokenizer(tokenizer, source).card.information for name, tokenizer in tokenizers.items()}
    assert sorted(kept, key=lambda name: -kept[name])[:2] == ["fitted", "projected"]
    assert min(kept["fitted"], kept["projected"]) > 0.8
    assert kept["collapsed"] == kept["places"] == 0
    assert kept["hashed"] < 0.1  # not 0: black patches are the same before and after


def test_tokens_are_those_of_the_fixed_view(fitted):
    source = subset(open_source("digits"), range(20))
    scored = score_tokenizer(fitted, source)
    view = FixedView(32)
    images = torch.stack([view(decode_image(source.read(index))) for index in scored.indices])
    np.testing.assert_array_equal(scored.ids, fitted.encode(images / 255).numpy())
    np.testing.assert_array_equal(scored.usage, np.bincount(scored.ids.ravel(), minlength=32))


def test_images_are_resized_as_the_tokenizer_wants(monkeypatch):
    wanted = []
    real = scoring.FixedView
    monkeypatch.setattr(scoring, "FixedView", lambda *arguments: wanted.append(arguments) or real(*arguments))
    monkeypatch.setattr(Colors, "interpolation", "lanczos")
    score_tokenizer(Colors(3), ColoredImages(4))
    assert wanted == [(32, "lanczos")]


def test_k_means_tells_distances_and_others_do_not(fitted, colored):
    card = score_tokenizer(fitted, subset(open_source("digits"), range(50))).card
    assert card.centroids is not None
    assert 0 < card.centroids.own_distance < 1
    assert 0 < card.centroids.margin < 1
    assert score_tokenizer(Colors(3), colored).card.centroids is None


def test_labels_come_from_the_source():
    labels = score_tokenizer(Colors(3), ColoredImages(400, labelled=True)).card.labels
    assert labels is not None
    assert labels.accuracy > 0.95
    assert 0.4 < labels.information < 0.9
    assert score_tokenizer(Colors(3), ColoredImages(20)).card.labels is None


def test_same_whatever_the_batches_and_workers(fitted, monkeypatch):
    source = subset(open_source("digits"), range(70))
    whole = score_tokenizer(fitted, source, seed=4)
    monkeypatch.setattr(scoring, "BATCH_SIZE", 9)
    assert_equal(whole, score_tokenizer(fitted, source, seed=4, workers=1))


def test_seed_changes_the_draws():
    tokenizer, source = RandomProjection(32, 8, 200), subset(open_source("digits"), range(40))
    same = [score_tokenizer(tokenizer, source, seed=seed).card.survival["jitter"].same for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def assert_equal(one: ScoredTokenizer, other: ScoredTokenizer) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.indices, other.indices)
    assert one.card.survival == other.card.survival
    assert one.card.labels == other.card.labels


def test_drawn_images_are_a_sample_without_repetition():
    source = ColoredImages(50)
    drawn = draw_images(source, 20, seed=1)
    contents = [drawn.read(index) for index in range(20)]
    assert len(set(contents)) == 20
    assert contents == [draw_images(source, 20, seed=1).read(index) for index in range(20)]
    assert contents != [draw_images(source, 20, seed=2).read(index) for index in range(20)]
    assert len(draw_images(source, 500, seed=1)) == 50


def test_unreadable_images_are_refused_or_left_out():
    colored = ColoredImages(20)
    source = Listed([b"no image" if index == 7 else colored.read(index) for index in range(20)])
    with pytest.raises(DataError, match="image 7"):
        score_tokenizer(Colors(3), source)
    scored = score_tokenizer(Colors(3), source, unreadable=UnreadableImages(1))
    assert scored.card.images == 19
    assert 7 not in scored.indices
    np.testing.assert_array_equal(scored.ids, np.delete(colored.colors, 7, axis=0))


@pytest.mark.parametrize("contents", [[], [b"no image"] * 3])
def test_too_few_images(contents):
    with pytest.raises(DataError, match="0 of the images of listed can be used; a scorecard needs at least 2"):
        score_tokenizer(Colors(3), Listed(contents), unreadable=UnreadableImages(9))


def test_a_single_patch_an_image_has_nothing_to_shift():
    tokenizer = RandomProjection(8, 8, 4)
    card = score_tokenizer(tokenizer, subset(open_source("digits"), range(40))).card
    assert list(card.survival) == ["flip", "jitter", "noise"]
    assert card.neighbours_agree is None
