from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, sample_keys, subset
from mapet.data.sources import open_source
from mapet.errors import DataError, StorageError, TokenizerError
from mapet.runtime.processes import Processes
from mapet.tokenizers.features import file as feature_file
from mapet.tokenizers.features import samples as feature_samples
from mapet.tokenizers.features.base import FeatureExtractor
from mapet.tokenizers.features.samples import PatchSample, SampledFeatures, sample_features
from tests.tokenizers.test_fit import Broken


class Position(FeatureExtractor):
    """The mean of each 4 x 4 patch, its number, and a value that a test can break."""

    broken: float = 0.0

    def __init__(self) -> None:
        super().__init__(16, (4, 4), 3)

    def fit(self, images: torch.Tensor, generator: torch.Generator) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.unfold(2, 4, 4).unfold(3, 4, 4).mean((1, 4, 5))
        numbers = torch.arange(16.0).view(4, 4).expand_as(means)
        last = torch.where((means > 0.5) & (numbers == 5), self.broken, 0.0)
        return torch.stack([means, numbers, last], -1)


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return subset(open_source("digits"), range(300))


def extract(source: ImageSource, folder: Path, per_image: float = 2.5, seed: int = 0, **changes: Any) -> SampledFeatures:
    arguments = {"device": torch.device("cpu"), "workers": 0, "unreadable": UnreadableImages(), "processes": Processes()}
    extractor = changes.pop("extractor", None) or Position()
    return sample_features(source, extractor, PatchSample(16, per_image, seed), folder, **{**arguments, **changes})


def rows(features: SampledFeatures) -> np.ndarray:
    stored = np.load(features.path)
    assert stored.dtype == np.float16
    assert stored.shape == (features.points, 3)
    return stored


def test_a_uniform_share_of_the_patches(digits: ImageSource, tmp_path: Path) -> None:
    found = rows(extract(digits, tmp_path))
    expected = 300 * 2.5
    assert abs(len(found) - expected) < 4 * math.sqrt(300 * 0.25)
    counts = np.array([*Counter(found[:, 1].tolist()).values()])
    assert len(counts) == 16
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 38  # chi-squared with 15 degrees of freedom, p = 0.001


def test_every_image_gives_the_count_rounded_down_or_up() -> None:
    keys = [f"{number:032x}" for number in range(3000)]
    for per_image in (0.3, 2.0, 2.7, 15.9, 16.0, 40.0):
        counts = [PatchSample(16, per_image, 0).count(key) for key in keys]
        wanted = min(per_image, 16)
        assert {math.floor(wanted), math.ceil(wanted)} == set(counts)
        assert abs(sum(counts) - 3000 * wanted) <= 4 * math.sqrt(3000 * 0.25)
    sample = PatchSample(16, 7.5, 0)
    assert all(len(set(sample.patch_indices(key).tolist())) == sample.count(key) for key in keys[:50])


def test_what_is_stored_are_the_features_of_the_chosen_patches(digits: ImageSource, tmp_path: Path) -> None:
    sample = PatchSample(16, 2.5, 0)
    wanted = torch.cat([sample.patch_indices(key) for key in sample_keys(digits)])
    assert rows(extract(digits, tmp_path))[:, 1].astype(int).tolist() == wanted.tolist()


def test_choice_depends_neither_on_order_nor_workers_nor_processes(digits: ImageSource, tmp_path: Path) -> None:
    whole = rows(extract(digits, tmp_path / "a"))
    assert np.array_equal(rows(extract(digits, tmp_path / "b", workers=2)), whole)
    backwards = rows(extract(subset(digits, range(299, -1, -1)), tmp_path / "c"))
    parts = [rows(extract(digits, tmp_path / "d", processes=Processes(rank, 3))) for rank in range(3)]
    assert all(len(part) > 100 for part in parts)
    wanted = sorted(whole.tolist())
    assert sorted(backwards.tolist()) == wanted
    assert sorted(np.concatenate(parts).tolist()) == wanted
    assert sorted(rows(extract(digits, tmp_path / "e", seed=1)).tolist()) != wanted


def test_images_without_a_patch_are_not_even_decoded(digits: ImageSource, tmp_path: Path) -> None:
    features = extract(digits, tmp_path, per_image=0.1)
    assert features.images == features.points < 60
    assert extract(digits, tmp_path / "none", per_image=1e-9).points == 0


@pytest.mark.parametrize("states", [0.0, 1e9])
def test_an_interrupted_extraction_continues_to_the_same_bits(
    digits: ImageSource, tmp_path: Path, states: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a state after every batch, and with none but the one at the interruption."""
    monkeypatch.setattr(feature_samples, "BATCH_SIZE", 32)
    whole = rows(extract(digits, tmp_path / "whole"))
    monkeypatch.setattr(feature_file, "SECONDS_BETWEEN_STATES", states)
    calls = [0]

    class Interrupted(Position):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            if calls[0] == 5:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        extract(digits, tmp_path / "cut", extractor=Interrupted())
    part = tmp_path / "cut" / "features-0-of-1.npy"
    with part.open("ab") as file:
        file.write(b"cut off in the middle of a batch")
    before = calls[0]
    continued = extract(digits, tmp_path / "cut", extractor=Interrupted())
    assert calls[0] - before == 10 - 4
    assert part.read_bytes() == (tmp_path / "whole" / part.name).read_bytes()
    assert np.array_equal(rows(continued), whole)
    assert extract(digits, tmp_path / "cut", extractor=Interrupted()) == continued
    assert calls[0] - before == 6


def test_killed_between_states_loses_only_what_came_after(
    digits: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file, "SECONDS_BETWEEN_STATES", 1e9)
    monkeypatch.setattr(feature_samples, "BATCH_SIZE", 32)
    file = feature_file.FeatureFile(tmp_path / "x.npy", 3, "job")
    file.__enter__()
    for number in range(3):
        file.add(torch.full((4, 3), float(number), dtype=torch.float16), 2, [])
        if number == 1:
            file._save()
    file._file.close()  # the third batch may or may not be on the disk: nothing says that it is
    again = feature_file.FeatureFile(tmp_path / "x.npy", 3, "job")
    assert (again.written.batches, again.written.rows, again.written.images) == (2, 8, 4)
    with again:
        again.add(torch.full((1, 3), 9.0, dtype=torch.float16), 1, [])
        again.finish()
    assert np.load(tmp_path / "x.npy")[:, 0].tolist() == [0] * 4 + [1] * 4 + [9]


def test_features_of_another_job_are_not_taken_for_these(digits: ImageSource, tmp_path: Path) -> None:
    first = rows(extract(digits, tmp_path))
    other = rows(extract(digits, tmp_path, seed=1))
    assert first.tolist() != other.tolist()
    assert np.array_equal(rows(extract(digits, tmp_path)), first)
    (tmp_path / "features-0-of-1.npy").write_bytes(b"short")
    assert np.array_equal(rows(extract(digits, tmp_path)), first)
    (tmp_path / "features-0-of-1.json").write_text("[1]")
    assert np.array_equal(rows(extract(digits, tmp_path)), first)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_features_that_float16_cannot_hold_are_refused_by_name(digits: ImageSource, tmp_path: Path, value: float) -> None:
    extractor = Position()
    extractor.broken = value
    first = next(index for index in range(300) if _is_bright(digits, index, tmp_path))
    with pytest.raises(TokenizerError, match=f"NaN, infinite or above 65504, the first in {digits.describe(first)}"):
        extract(digits, tmp_path, per_image=16, extractor=extractor)


def _is_bright(source: ImageSource, index: int, folder: Path) -> bool:
    stored = rows(extract(subset(source, [index]), folder, per_image=16))
    return bool(((stored[:, 0] > 0.5) & (stored[:, 1] == 5)).any())


def test_unreadable_images_are_counted_once_and_named_again(digits: ImageSource, tmp_path: Path) -> None:
    tolerant = UnreadableImages(limit=40)
    features = extract(Broken(digits), tmp_path, unreadable=tolerant)
    assert (len(tolerant), features.images) == (30, 270)
    again = UnreadableImages(limit=40)
    assert extract(Broken(digits), tmp_path, unreadable=again) == features
    assert again.names == tolerant.names
    with pytest.raises(DataError, match="--max-unreadable"):
        extract(Broken(digits), tmp_path / "strict")


def test_too_little_room_is_said_before_the_work(digits: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_samples.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"The features take 0.0 MiB in .* Make room"):
        extract(digits, tmp_path / "deep" / "folder", per_image=16)
    assert not (tmp_path / "deep").exists()
