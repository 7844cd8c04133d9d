from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mapet.compat import import_torchvision
from mapet.data.augmentation import TrainingView, _posterize, seeded_everywhere
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.views import FixedView
from mapet.errors import SettingsError
from tests.tiny import tiny_source

STRONG = "rand-m9-mstd0.5-inc1"


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise that is brighter on the right."""
    pixels = np.random.default_rng(seed).integers(0, 128, (size[1], size[0], 3))
    pixels[:, size[0] // 2 :] += 127
    return Image.fromarray(pixels.astype(np.uint8))


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_all_generators_are_seeded_inside_and_restored_outside() -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    with seeded_everywhere("x", 1):
        first = drawn()
    assert state() == before
    with seeded_everywhere("x", 1):
        assert drawn() == first
    with seeded_everywhere("x", 2):
        other = drawn()
    assert not any(one == two for one, two in zip(first, other, strict=True))
    assert len(set(first)) == 3


@pytest.mark.parametrize("options", [{}, {"rand_augment": STRONG}, {"color_jitter": 0.4}, {"interpolation": "random"}])
def test_a_view_is_a_function_of_image_and_seed(options: dict) -> None:
    view, image = TrainingView(16, **options), picture()
    once = [view(image, seed) for seed in range(6)]
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    before = random.getstate()
    again = [view(image, seed) for seed in range(6)]
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))
    assert random.getstate() == before
    assert len({one.numpy().tobytes() for one in once}) == 6, "every seed draws anew"
    assert all(one.dtype == torch.uint8 and one.shape == (3, 16, 16) for one in once)


def test_without_chance_it_is_a_resized_whole() -> None:
    image = picture(size=(30, 30))
    view = TrainingView(16, scale=(1.0, 1.0), flip=False)
    expected = FixedView(16)(image).int()
    squares = [seed for seed in range(40) if (view(image, seed).int() - expected).abs().max() <= 1]
    assert squares, "where the aspect ratio that is drawn does not fit, the whole square is taken"


def test_half_of_the_images_are_mirrored() -> None:
    image = picture()
    brighter_right = [
        float(view[..., 8:].float().mean() - view[..., :8].float().mean()) > 0
        for view in (TrainingView(16, scale=(0.9, 1.0))(image, seed) for seed in range(80))
    ]
    assert 25 < sum(brighter_right) < 55
    unmirrored = TrainingView(16, scale=(0.9, 1.0), flip=False)
    assert all(float(unmirrored(image, seed)[..., 8:].float().mean()) > 100 for seed in range(10))


def test_crops_have_the_area_that_was_asked_for(monkeypatch) -> None:
    import_torchvision()
    from torchvision.transforms import functional

    areas, crop = [], functional.resized_crop
    monkeypatch.setattr(
        functional, "resized_crop", lambda image, i, j, h, w, *a, **k: (areas.append(h * w), crop(image, i, j, h, w, *a, **k))[1]
    )
    view, image = TrainingView(16, scale=(0.2, 0.4)), picture(size=(100, 100))
    for seed in range(50):
        view(image, seed)
    assert len(areas) == 50
    assert 0.18 < min(areas) / 1e4 < max(areas) / 1e4 < 0.42


def test_rand_augment_takes_the_place_of_jitter() -> None:
    image = picture()
    plain, jittered = TrainingView(16), TrainingView(16, color_jitter=0.8)
    strong, both = TrainingView(16, STRONG), TrainingView(16, STRONG, color_jitter=0.8)
    assert any(not torch.equal(plain(image, seed), jittered(image, seed)) for seed in range(4))
    assert any(not torch.equal(plain(image, seed), strong(image, seed)) for seed in range(8))
    assert all(torch.equal(strong(image, seed), both(image, seed)) for seed in range(8))


@pytest.mark.parametrize("text", ["rand-m10-inc1-n12-p1", "rand-m0-n12-p1"])
def test_posterizing_to_no_bit_is_black_and_no_error(text: str) -> None:
    view, image = TrainingView(16, text), picture()
    assert len({view(image, seed).numpy().tobytes() for seed in range(30)}) > 1
    for bits in range(9):
        expected = np.asarray(image) >> (8 - bits) << (8 - bits) if bits else np.zeros((30, 40, 3), np.uint8)
        assert np.array_equal(np.asarray(_posterize(image, bits)), expected)
        if bits:
            assert np.array_equal(np.asarray(ImageOps.posterize(image, bits)), expected)


def test_the_number_of_workers_changes_nothing() -> None:
    source, batches = tiny_source(), [BatchItem([0, 5, 9], (2,)), BatchItem([3, 1, 30], (2,))]
    renderer = ViewRenderer(TrainingView(16, STRONG), seed=4)
    one, other = (torch.cat([loaded.images for loaded in make_loader(source, renderer, batches, workers)]) for workers in (0, 2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("text", ["rand-m9-foo", "rand-m", "rand-x9", "original", "", "rand-m9-mstdx", "augmix-m3"])
def test_notation_that_timm_would_take_for_something_else_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=rf"rand_augment is '{text}'; allowed: null for none"):
        TrainingView(16, text)


def test_other_values_are_refused() -> None:
    with pytest.raises(SettingsError, match="no interpolation 'nearest'"):
        TrainingView(16, interpolation="nearest")
    with pytest.raises(SettingsError, match="two shares"):
        TrainingView(16, scale=(0.5, 0.2))
