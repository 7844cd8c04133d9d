from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, subset
from mapet.data.sources import open_source
from mapet.errors import DataError, TokenizerError
from mapet.tokenizers.clustering import kmeans
from mapet.tokenizers.clustering import state as kmeans_state
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features import file as feature_file
from mapet.tokenizers.features import samples as feature_samples
from mapet.tokenizers.features.pixels import PixelFeatures
from mapet.tokenizers.fit import fit_tokenizer
from mapet.tokenizers.fit_settings import FitSettings, preset_settings
from mapet.tokenizers.load import load_tokenizer


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return subset(open_source("digits"), range(300))


SMALL = FitSettings(
    features="pixels",
    feature_options={"dim": 12},
    image_size=16,
    patch_size=4,
    vocab_size=32,
    num_points=3000,
    max_images=200,
    iterations=5,
    restarts=2,
)


def fit(source: ImageSource, unreadable: UnreadableImages | None = None, out: Path | None = None, **changes: Any) -> FeatureKMeans:
    how = {name: changes.pop(name) for name in ("workers", "memory", "keep_features") if name in changes}
    unreadable = UnreadableImages() if unreadable is None else unreadable
    return fit_tokenizer(source, replace(SMALL, **changes), out=out, unreadable=unreadable, **how)


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


def test_points_from_the_disk_give_the_same_as_from_memory(digits):
    assert fit(digits, memory=0).fingerprint == fit(digits).fingerprint


def test_a_share_of_the_patches_and_all_images(digits):
    report = fit(digits, share=0.5, max_images=None).fit_report
    assert report["images"] == 300
    assert report["points"] == 300 * 8


def test_the_tokenizer_is_saved_and_what_led_to_it_removed(digits, tmp_path):
    tokenizer = fit(digits, out=tmp_path / "tok")
    assert [path.name for path in tmp_path.iterdir()] == ["tok"]
    assert load_tokenizer(tmp_path / "tok").fingerprint == tokenizer.fingerprint
    with pytest.raises(TokenizerError, match=r"There is a tokenizer at .*tok already.*another --out"):
        fit(digits, out=tmp_path / "tok", vocab_size=8)
    assert load_tokenizer(tmp_path / "tok").fingerprint == tokenizer.fingerprint
    shutil.rmtree(tmp_path / "tok")
    fit(digits, out=tmp_path / "tok", keep_features=True)
    assert {path.name for path in tmp_path.iterdir()} == {"tok", ".tok.features"}
    assert np.load(tmp_path / ".tok.features" / "features-0-of-1.npy").shape == (3000, 12)


def test_kept_features_serve_another_clustering(digits, tmp_path, monkeypatch):
    fit(digits, out=tmp_path / "tok", keep_features=True)
    monkeypatch.setattr(feature_samples, "_extract", None)
    assert fit(digits, out=tmp_path / "tok", vocab_size=8).vocab_size == 8


class Stopped(Exception):
    pass


@pytest.mark.parametrize("moment", ["extraction", "clustering", "saving"])
def test_the_same_call_continues_to_the_same_tokenizer(digits, tmp_path, monkeypatch, moment):
    whole = fit(digits).fingerprint
    monkeypatch.setattr(kmeans_state, "SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.setattr(feature_file, "SECONDS_BETWEEN_STATES", 0.0)
    calls = []

    def stop_at(count, function):
        def wrapped(*arguments, **options):
            calls.append(1)
            if len(calls) == count:
                raise Stopped
            return function(*arguments, **options)

        return wrapped

    module, name, count = {
        "extraction": (feature_samples, "_sampled", 3),
        "clustering": (kmeans, "one_pass", 9),
        "saving": (FeatureKMeans, "save", 1),
    }[moment]
    original = getattr(module, name)
    monkeypatch.setattr(module, name, stop_at(count, original))
    with pytest.raises(Stopped):
        fit(digits, out=tmp_path / "tok")
    calls.clear()
    monkeypatch.setattr(module, name, stop_at(10**9, original))
    assert fit(digits, out=tmp_path / "tok").fingerprint == whole
    assert len(calls) == {"extraction": 2, "clustering": 12 - 8, "saving": 1}[moment]
    assert [path.name for path in tmp_path.iterdir()] == ["tok"]


def test_another_folder_is_not_written_over(digits, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(TokenizerError, match="is not a tokenizer; it is left alone"):
        fit(digits, out=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 65_537}, "vocabulary size is 65537. Allowed: 2 to 65536"),
        ({"vocab_size": 1}, "vocabulary size is 1"),
        ({"share": 0.0}, "share of patches is 0. Allowed: above 0, at most 1"),
        ({"share": 1.5}, "share of patches is 1.5"),
        ({"num_points": 0}, "num_points is 0. Allowed: 1 or more"),
        ({"max_images": -1}, "max_images is -1"),
    ],
)
def test_settings_that_are_not_allowed(changes, message):
    with pytest.raises(TokenizerError, match=message):
        replace(SMALL, **changes)


def test_the_papers_settings_and_what_overrules_them():
    paper = preset_settings("k-clip")
    assert (paper.features, paper.image_size, paper.patch_size, paper.vocab_size) == ("resnet50x64_clip.openai", 448, 32, 8192)
    assert (paper.num_points, paper.max_images, paper.iterations, paper.restarts) == (4_194_304, None, 20, 5)
    smaller = preset_settings("k-clip", features="resnet50_clip.openai", restarts=1, vocab_size=None)
    assert (smaller.features, smaller.restarts, smaller.vocab_size) == ("resnet50_clip.openai", 1, 8192)
    assert preset_settings(None, share=0.02).max_images is None
    assert preset_settings(None, share=0.02, max_images=10).max_images == 10
    assert preset_settings(None, max_images=0).max_images is None
    assert preset_settings("k-clip", share=0.02).share == 0.02
    with pytest.raises(TokenizerError, match=r"Both a share .* and a number of patches"):
        preset_settings(None, share=0.02, num_points=10)
    with pytest.raises(TokenizerError, match=r"no preset 'k-clop'. Did you mean 'k-clip'"):
        preset_settings("k-clop")


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


def test_f22_features_that_are_all_the_same_are_refused(digits: ImageSource, monkeypatch) -> None:
    monkeypatch.setattr(PixelFeatures, "forward", lambda self, images: torch.ones(len(images), *self.grid_size, self.dim))
    with pytest.raises(TokenizerError, match=r"features of all .* patches are the same"):
        fit(digits)
