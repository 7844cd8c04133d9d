"""Which patches a gallery shows, and with what around them."""

from __future__ import annotations

import numpy as np
import pytest

from mapet.report import gallery as galleries
from mapet.report.drawing import ABSENT
from mapet.report.gallery import Vocabulary, gallery, occurrences, percent, surrounded, usage_figure, vocabulary_figures


def vocabulary(ids: np.ndarray, codes: int, asked: list[int] | None = None, **changes) -> Vocabulary:
    """Images in which every patch of 2 x 2 pixels has the colour (image, row, column)."""

    def image(index: int) -> np.ndarray:
        if asked is not None:
            asked.append(index)
        rows, columns = np.mgrid[: ids.shape[1], : ids.shape[2]]
        return np.stack([np.full_like(rows, index), rows, columns], axis=2).astype(np.uint8).repeat(2, 0).repeat(2, 1)

    usage = np.bincount(ids.ravel(), minlength=codes)
    return Vocabulary(
        **{"title": "t", "ids": ids, "image": image, "usage": usage, "seed": 0, "images": "i", "counted": "c"} | changes
    )


@pytest.fixture
def tiles(monkeypatch) -> list[np.ndarray]:
    """What is drawn, in order, in place of drawing it."""
    drawn = []
    monkeypatch.setattr(galleries, "_draw_tile", lambda axes, row, column, pixels: drawn.append((row, column, pixels)))
    return drawn


def test_patches_of_a_code_come_from_different_images_first():
    ids = np.array([[[5, 5], [0, 0]], [[0, 5], [0, 0]], [[0, 0], [0, 0]]])
    assert occurrences(ids, 5, [2, 1, 0]) == [(1, 0, 1), (0, 0, 0), (0, 0, 1)]


def test_surroundings_are_centred_on_the_patch_and_absent_beyond_the_border():
    image = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    tile = surrounded(image, 0, 1, (2, 2), reach=1)
    assert tile.shape == (6, 6, 3)
    np.testing.assert_array_equal(tile[2:4, 2:4], image[0:2, 2:4])
    np.testing.assert_array_equal(tile[2:, :], image[0:4, :])
    assert (tile[:2] == ABSENT).all()


def test_every_tile_has_its_code_in_the_middle(tiles):
    ids = np.random.default_rng(0).integers(0, 5, (6, 4, 3))
    shown = vocabulary(ids, 5)
    gallery(shown, [3, 0], "name", "title")
    assert [(row, column) for row, column, _ in tiles] == [(row, column) for row in (0, 1) for column in range(galleries.PATCHES)]
    for row, _, pixels in tiles:
        assert pixels.shape == (10, 10, 3)
        image, at_row, at_column = pixels[4, 4]
        assert ids[image, at_row, at_column] == (3, 0)[row]


def test_only_images_that_are_drawn_are_read(tiles):
    asked: list[int] = []
    gallery(vocabulary(np.arange(400).reshape(100, 2, 2), 400, asked), [17], "name", "title")
    assert set(asked) <= {17 // 4, *asked[:1]}  # one more for the size of a patch


def test_codes_without_patches_are_said_so(tiles, monkeypatch):
    said = []
    from matplotlib.axes import Axes

    real = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **style: said.append(text) or real(self, x, y, text, **style))
    gallery(vocabulary(np.zeros((2, 2, 2), int), 3), [1], "name", "title")
    assert "in none of 2 images" in said
    assert "\nunused" in said
    assert tiles == []


def test_most_used_and_random_codes():
    usage = np.array([5, 0, 9, 1, 9, 3])
    shown = vocabulary(np.array([[[0, 2], [3, 5]], [[0, 2], [2, 5]]]), 6, usage=usage)
    assert shown.most_used(4) == [2, 0, 5]  # 4 is used as often as 2, but in none of the images
    assert shown.random(9) == [2, 0, 5, 3]
    assert shown.random(9, without=[2, 5]) == [0, 3]
    assert shown.random(2) == shown.random(2)
    assert len({tuple(vocabulary(np.arange(64).reshape(4, 4, 4), 64, seed=seed).random(3)) for seed in range(5)}) > 1


def test_figures_of_a_vocabulary():
    names = [picture.name for picture in vocabulary_figures(vocabulary(np.arange(32).reshape(2, 4, 4) % 7, 9))]
    assert names == ["codebook-most-used-t", "codebook-random-t", "codebook-usage-t"]
    few = vocabulary_figures(vocabulary(np.zeros((2, 2, 2), int), 4))
    assert [picture.name for picture in few] == ["codebook-most-used-t", "codebook-usage-t"]


def test_usage_figure_tells_perplexity():
    assert (
        "4 of 9 codes are used, the most used one 2 times, the perplexity is 4"
        in usage_figure(vocabulary(np.array([[[0, 1, 2, 3]], [[0, 1, 2, 3]]]), 9)).alt
    )


@pytest.mark.parametrize(("share", "text"), [(0.5, "50 %"), (0.0123, "1.2 %"), (0.00001, "<0.01 %")])
def test_shares_are_short(share, text):
    assert percent(share) == text
