from __future__ import annotations

import numpy as np
import pytest
import torch

from mapet.tokenizers.scoring.perturbations import PERTURBATIONS, ColorJitter, Flip, Noise, PatchShift, SmallShift

KEYS = ["a", "b", "c"]
IDS = np.arange(3 * 4 * 4).reshape(3, 4, 4)


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def patch_means(pixels: torch.Tensor) -> np.ndarray:
    """(n, 4, 4), something like tokens."""
    return pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5)).numpy()


@pytest.mark.parametrize("change", PERTURBATIONS, ids=lambda change: change.name)
def test_images_stay_images_and_depend_on_seed_and_key_alone(change):
    before = images()
    after = change(before, KEYS, 1, 8)
    assert after.shape == before.shape
    assert float(after.min()) >= 0
    assert float(after.max()) <= 1
    assert not torch.equal(after, before)
    for index, key in enumerate(KEYS):
        assert torch.equal(change(before[index : index + 1], [key], 1, 8), after[index : index + 1])
    assert torch.equal(before, images())


@pytest.mark.parametrize("change", [ColorJitter(), Noise()], ids=lambda change: change.name)
def test_draws_change_with_the_seed(change):
    assert not torch.equal(change(images(), KEYS, 1, 8), change(images(), KEYS, 2, 8))


@pytest.mark.parametrize("change", [ColorJitter(), Noise()], ids=lambda change: change.name)
def test_draws_change_with_the_image(change):
    same = images(1).expand(3, -1, -1, -1)
    one, other, again = change(same, ["a", "b", "a"], 1, 8)
    assert not torch.equal(one, other)
    assert torch.equal(one, again)


def test_flipped_patches_are_compared_with_themselves():
    before, after = Flip().align(patch_means(images()), patch_means(Flip()(images(), KEYS, 0, 8)))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert before.shape == (3, 4, 4)


def test_patches_are_compared_with_where_they_moved_to():
    before, after = PatchShift().align(patch_means(images()), patch_means(PatchShift()(images(), KEYS, 0, 8)))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert before.shape == (3, 3, 3)
    kept, _ = PatchShift().align(IDS, IDS)
    assert kept[0].tolist() == IDS[0, :3, :3].tolist()


@pytest.mark.parametrize(("patch", "pixels"), [(4, 1), (8, 1), (16, 2), (32, 4)])
def test_small_shift_is_an_eighth_of_a_patch(patch, pixels):
    before = images(size=64)
    after = SmallShift()(before, KEYS, 0, patch)
    assert torch.equal(after[:, :, pixels:, pixels:], before[:, :, :-pixels, :-pixels])


def test_small_shift_compares_no_made_up_pixels():
    before, after = SmallShift().align(IDS, IDS + 100)
    assert before.tolist() == IDS[:, 1:, 1:].tolist()
    assert after.tolist() == (IDS + 100)[:, 1:, 1:].tolist()
    shown = SmallShift()(images(), KEYS, 0, 8)[:, :, 8:, 8:]
    assert torch.equal(shown, images()[:, :, 7:-1, 7:-1])


def test_noise_and_jitter_are_as_strong_as_they_say():
    grey = torch.full((200, 3, 32, 32), 0.5)
    keys = [str(index) for index in range(200)]
    assert float((Noise()(grey, keys, 0, 8) - grey).std()) == pytest.approx(0.02, rel=0.01)
    brightness = ColorJitter()(grey, keys, 0, 8).mean((1, 2, 3)) / 0.5
    assert 0.6 <= float(brightness.min()) < 0.65
    assert 1.35 < float(brightness.max()) <= 1.4


def test_only_what_changes_pixels_is_ranked():
    assert [change.name for change in PERTURBATIONS if not change.changes_pixels] == ["patch shift"]
