from __future__ import annotations

import pytest
import torch

from mapet.data.loader import UnreadableImages
from mapet.data.sources import ImageSource, open_source, subset
from mapet.errors import DataError, TokenizerError
from mapet.tokenizers.base import load_tokenizer
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.fit import fit_tokenizer


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return subset(open_source("digits"), range(300))


def fit(source: ImageSource, unreadable: UnreadableImages | None = None, **changes) -> FeatureKMeans:
    arguments = {
        "features": "pixels",
        "feature_options": {"dim": 12},
        "image_size": 16,
        "patch_size": 4,
        "vocab_size": 32,
        "num_points": 3000,
        "max_images": 200,
        "iterations": 5,
        "restarts": 2,
    }
    return fit_tokenizer(source, unreadable=UnreadableImages() if unreadable is None else unreadable, **{**arguments, **changes})


class Broken:
    """The source, with one image in ten cut off."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.location, self.labels, self.classes = source.location, source.labels, source.classes

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        content = self._source.read(index)
        return content[:20] if index % 10 == 0 else content

    def describe(self, index: int) -> str:
        return self._source.describe(index)


def test_report_tells_how_the_fit_went(digits, tmp_path, capsys):
    tokenizer = fit(digits)
    report = tokenizer.fit_report
    assert report["images"] == 200
    assert report["points"] == 200 * 15
    assert report["inertia_per_point"] == pytest.approx(report["inertia"] / 3000)
    assert 16 < report["perplexity"] <= report["used_codes"] <= 32
    assert "of 32 tokens used" in " ".join(capsys.readouterr().err.split())
    tokenizer.save(tmp_path / "tok")
    assert load_tokenizer(tmp_path / "tok").fit_report == report


def test_same_arguments_same_tokenizer_with_any_number_of_workers(digits):
    first = fit(digits).fingerprint
    assert fit(digits, workers=2).fingerprint == first
    assert fit(digits, seed=1).fingerprint != first


def test_more_tokens_fit_the_points_better(digits):
    few, many = (fit(digits, vocab_size=size).fit_report["inertia"] for size in (8, 64))
    assert many < few


def test_coates_features(digits):
    tokenizer = fit(digits, features="coates", feature_options={"num_filters": 16})
    assert tokenizer.encode(torch.rand(3, 3, 16, 16)).shape == (3, 4, 4)


def test_timm_features_need_no_images_to_fit(digits):
    options = {"pretrained": False}
    tokenizer = fit(digits, features="test_vit", feature_options=options, image_size=32, patch_size=16, max_images=20, vocab_size=8)
    assert tokenizer.fit_report["points"] == 20 * 4


def test_fewer_patches_than_tokens(digits):
    with pytest.raises(TokenizerError, match="300 images of 16 patches give 4800 points, fewer than the 5000 tokens"):
        fit(digits, vocab_size=5000, num_points=10_000, max_images=1000)


@pytest.mark.parametrize("option", ["image_size", "name"])
def test_options_that_are_set_elsewhere(digits, option):
    with pytest.raises(TokenizerError, match=f"{option} is no option of the features"):
        fit(digits, feature_options={option: 3})


def test_unreadable_images_are_skipped_up_to_the_limit(digits):
    tolerant = UnreadableImages(limit=100)
    report = fit(Broken(digits), tolerant, max_images=300).fit_report
    assert len(tolerant) == 30
    assert report["images"] == 270
    assert report["points"] == 270 * 10
    with pytest.raises(DataError, match="--max-unreadable"):
        fit(Broken(digits))
