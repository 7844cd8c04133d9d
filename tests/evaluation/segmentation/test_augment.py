from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.mask_files import IGNORED, PADDED
from mapet.evaluation.segmentation import augment
from mapet.evaluation.segmentation.augment import Augmentation, Draws, distort, fitting_size, is_varied
from tests.evaluation.segmentation.pictures import pair

SMALL = Augmentation(crop=32, scale=(128, 32), ratio=(0.5, 2.0), max_class_share=0.75)


def picture(seed: int = 0) -> tuple[Image.Image, np.ndarray]:
    image, ids = pair(seed)
    return image, ids.astype(np.int16)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    image, mask = picture()
    first, again, other = (SMALL(image, mask, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_image_and_mask_move_together(monkeypatch) -> None:
    """With colours left alone, every pixel still has the brightness of its class, apart from the borders between classes."""
    monkeypatch.setattr(augment, "distort", lambda pixels, draws: pixels)
    flipped = 0
    for seed in range(20):
        image, mask = picture(seed)
        pixels, classes = SMALL(image, mask, seed)
        assert pixels.shape == (32, 32, 3)
        inside = classes != PADDED
        level = np.array([128, 240, 128, 10])[classes.clip(0)]
        wrong = (np.abs(pixels[..., 0].astype(int) - level) > 30) & inside
        assert wrong.sum() < 0.25 * inside.sum()
        assert (pixels[~inside] == 0).all()
        columns = np.flatnonzero((classes == 1).any(axis=0))
        flipped += len(columns) > 0 and columns[0] > 16
    assert 0 < flipped < 20


def test_images_of_every_size_fill_or_are_padded() -> None:
    image, mask = picture()
    shares = [(SMALL(image, mask, seed)[1] != PADDED).mean() for seed in range(40)]
    assert min(shares) < 0.5
    assert max(shares) == 1.0
    padded = SMALL(image, mask, int(np.argmin(shares)))[1] == PADDED
    assert not padded[0, 0]
    assert padded[-1, 0]  # at the bottom and at the right


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((683, 512), (683, 512)),
        ((1024, 768), (683, 512)),
        ((480, 360), (683, 512)),
        ((400, 3000), (273, 2048)),
        ((4000, 500), (2048, 256)),
    ],
)
def test_sizes_are_those_of_mmsegmentation(size, expected) -> None:
    assert fitting_size(*size, 2048, 512) == expected


def test_a_crop_of_one_class_is_drawn_again(monkeypatch) -> None:
    """The left half is of one class, the right half is mixed: nearly all crops come from where both can be seen."""
    classes = np.zeros((32, 256), np.int16)
    classes[::2, 128:] = 1
    image = Image.fromarray(np.zeros((32, 256, 3), np.uint8))
    still = Augmentation(crop=32, scale=(256, 32), ratio=(1.0, 1.0), max_class_share=0.75)
    uniform = [(still(image, classes, seed)[1] == 1).mean() <= 0.25 for seed in range(40)]
    assert sum(uniform) <= 2
    free = Augmentation(crop=32, scale=(256, 32), ratio=(1.0, 1.0), max_class_share=1.0)
    monkeypatch.setattr(augment, "is_varied", lambda *_: True)
    assert sum((free(image, classes, seed)[1] == 1).mean() <= 0.25 for seed in range(40)) > 10


def test_ignored_pixels_count_for_no_class() -> None:
    mask = np.array([[IGNORED] * 6 + [0, 0, 1, 1]], np.int16)
    assert is_varied(mask, 0.75)
    assert not is_varied(np.array([[IGNORED, 0, 0]], np.int16), 0.75)
    assert not is_varied(np.array([[0, 0, 0, 1]], np.int16), 0.75)  # a share of exactly 0.75
    assert not is_varied(np.full((2, 2), IGNORED, np.int16), 0.75)


class Script:
    """Draws that are written down: chances in order, and what uniform and integer give."""

    def __init__(self, chances: list[bool], value: float) -> None:
        self.chances, self.value = iter(chances), value

    def chance(self) -> bool:
        return next(self.chances)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        assert low <= self.value <= high
        return self.value

    def integer(self, low: int, high: int) -> int:
        assert low <= self.value < high
        return int(self.value)


def test_brightness_and_contrast_are_cut_off_at_black_and_white() -> None:
    pixels = np.array([[[0, 100, 250]]], np.uint8)
    brighter = distort(pixels, Script([True, False, False, False, False], 20.7))
    np.testing.assert_array_equal(brighter, [[[20, 120, 255]]])
    for chances in ([False, True, True, False, False], [False, False, False, False, True]):
        np.testing.assert_array_equal(distort(pixels, Script(chances, 1.5)), [[[0, 150, 255]]])


def test_saturation_and_hue_are_those_of_hsv() -> None:
    pixels = np.array([[[200, 100, 40], [30, 220, 90], [77, 77, 77]]], np.uint8)

    def reference(saturation: float, degrees: float) -> np.ndarray:
        out = []
        for red, green, blue in pixels[0] / 255:
            hue, old, value = colorsys.rgb_to_hsv(red, green, blue)
            out.append(colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(1.0, old * saturation), value))
        return 255 * np.array([out])

    paler = distort(pixels, Script([False, False, True, False, False], 0.6))
    np.testing.assert_allclose(paler, reference(0.6, 0), atol=4)
    turned = distort(pixels, Script([False, False, False, True, False], -15))
    np.testing.assert_allclose(turned, reference(1.0, -30), atol=6)


def test_nothing_is_changed_where_no_chance_comes_up() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(distort(pixels, Script([False] * 5, 0.0)), pixels)


def test_draws_keep_to_their_ranges() -> None:
    draws = Draws(3)
    integers = [draws.integer(-18, 18) for _ in range(2000)]
    assert (min(integers), max(integers)) == (-18, 17)
    numbers = torch.tensor([draws.uniform(0.5, 1.5) for _ in range(2000)])
    assert 0.5 <= numbers.min() < 0.51
    assert 1.49 < numbers.max() < 1.5
    assert 0.45 < sum(draws.chance() for _ in range(2000)) / 2000 < 0.55
