import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mapet.checkpoints.classifier_preprocessing import Preprocessing, ValidationView
from mapet.data.regions import Region, central_square, draw_region
from mapet.data.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentedView,
    EvaluationView,
    FixedView,
    Rendering,
    normalise,
    without_far_ends,
)
from mapet.errors import SettingsError
from tests.data.images import random_image

GOLDENS = Path(__file__).parents[1] / "goldens" / "mapet"
SHAPES = json.loads((GOLDENS / "preproc_a.json").read_text())["tensors"]
TENSORS = load_file(GOLDENS / "preproc_a.safetensors")
IMAGES = [name.removeprefix("image") for name in SHAPES if name.startswith("image")]


@pytest.mark.parametrize("number", IMAGES)
@pytest.mark.parametrize(("golden", "view"), [("pretrain_nojitter", FixedView), ("eval", EvaluationView)])
def test_views_equal_the_reference(number, golden, view):
    size = SHAPES[golden + number][1][-1]
    seen = view(size)(Image.fromarray(TENSORS[f"image{number}"].numpy()))
    assert seen.dtype == torch.uint8
    torch.testing.assert_close(normalise(seen[None])[0], TENSORS[golden + number], atol=1e-6, rtol=0)


VIEWS = [FixedView(24), EvaluationView(24), AugmentedView(24)]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (200, 3), (24, 24), (25, 24)])
def test_any_shape_gives_the_size_asked_for(view, shape):
    seen = view(Image.new("RGB", shape, (10, 20, 30)), seed=5)
    assert seen.shape == (3, 24, 24)
    assert seen.is_contiguous()
    assert (seen == torch.tensor([10, 20, 30]).view(3, 1, 1)).all()


def test_evaluation_resizes_to_the_floor_of_size_over_fraction():
    assert [EvaluationView(size).shorter_side for size in (224, 48)] == [248, 53]
    whole = EvaluationView(12, crop_fraction=1.0)
    assert torch.equal(whole(random_image(0, 12, 12)), FixedView(12)(random_image(0, 12, 12)))


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_a_rendering_shows_its_region_and_nothing_else(interpolation):
    pixels = np.full((40, 30, 3), 255, np.uint8)
    pixels[10:20, 5:25] = np.random.default_rng(0).integers(0, 100, (10, 20, 3))
    seen = Rendering(24, interpolation)(Image.fromarray(pixels), Region(5, 10, 25, 20))
    alone = Image.fromarray(pixels[10:20, 5:25]).resize((24, 24), Image.Resampling[interpolation.upper()])
    assert torch.equal(seen, torch.from_numpy(np.array(alone)).permute(2, 0, 1))
    assert seen.max() < 150


def test_a_mirrored_region_has_the_mirrored_pixels():
    image, region = random_image(0, 40, 30), Region(3, 4, 33, 25)
    for rendering in (Rendering(16), Rendering(31, "lanczos")):
        assert torch.equal(rendering(image, replace(region, flip=True)), rendering(image, region).flip(2))
    assert not torch.equal(Rendering(31, "lanczos")(image, region), Rendering(31)(image, region))


def test_the_fixed_view_has_a_filter():
    image = random_image(0, 40, 30)
    assert torch.equal(FixedView(16)(image), Rendering(16)(image, Region(5, 0, 35, 30)))
    assert torch.equal(FixedView(16, "lanczos")(image), Rendering(16, "lanczos")(image, Region(5, 0, 35, 30)))


def test_augmented_view_is_a_function_of_image_and_seed():
    view, image = AugmentedView(16), random_image(0, 40, 30)
    state = torch.random.get_rng_state()
    assert torch.equal(view(image, 1), view(image, 1))
    assert not torch.equal(view(image, 1), view(image, 2))
    assert torch.equal(state, torch.random.get_rng_state())


def test_augmented_view_shows_random_regions_of_the_image():
    image, generator = random_image(0, 40, 30), torch.Generator().manual_seed(7)
    expected = Rendering(16)(image, draw_region(40, 30, generator, (0.3, 0.5)))
    assert torch.equal(AugmentedView(16, (0.3, 0.5))(image, 7), expected)


def test_augmented_flips_half_of_the_time():
    ramp = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2))
    view = AugmentedView(16)
    flipped = sum(bool(seen[0, 0, 0] > seen[0, 0, -1]) for seen in (view(ramp, seed) for seed in range(400)))
    assert 160 < flipped < 240


def test_normalise_takes_bytes_and_floats():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(normalise(images), expected.float())
    torch.testing.assert_close(normalise(images.double() / 255), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(normalise(images, (0, 0, 0), (1, 1, 1)), images / 255)


def test_settings_out_of_range():
    with pytest.raises(SettingsError, match="size of a view is 0 pixels; allowed: 1 or more"):
        FixedView(0)
    with pytest.raises(SettingsError, match=r"crop_fraction is 1\.5; allowed"):
        EvaluationView(24, 1.5)
    with pytest.raises(SettingsError, match=r"scale is \(0\.5, 0\.2\); allowed"):
        AugmentedView(24, (0.5, 0.2))
    with pytest.raises(SettingsError, match=r"no interpolation 'bilinear'.*bicubic, lanczos"):
        FixedView(24, "bilinear")


def long_image(width: int, height: int) -> Image.Image:
    """Smooth along its length, so that a wrong place shows."""
    along = np.linspace(0, 255, max(width, height)).astype(np.uint8)
    grey = along[None, :].repeat(height, 0) if width > height else along[:, None].repeat(width, 1)
    return Image.fromarray(grey).convert("RGB")


LONG = [EvaluationView(128), ValidationView(Preprocessing(128)), FixedView(128), Rendering(128)]


@pytest.mark.parametrize("view", LONG, ids=lambda view: type(view).__name__)
@pytest.mark.parametrize("shape", [(12_000, 1), (1, 12_000), (30_001, 2)])
def test_r28_a_long_image_is_not_enlarged_whole(monkeypatch, view, shape):
    """R28: 12,000 x 1 would become 1,700,000 x 142 pixels."""
    sizes, resize = [], Image.Image.resize

    def watched(image, size, *args, **kwargs):
        sizes.append(size)
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    image = long_image(*shape)
    seen = view(image, central_square(*shape)) if isinstance(view, Rendering) else view(image)
    assert max(width * height for width, height in sizes) <= 40 * 142 * 142
    assert (seen.float() - 127.5).abs().max() <= 1  # its centre


@pytest.mark.parametrize("shape", [(4000, 100), (70, 2)])
def test_r28_what_a_long_image_shows_is_the_same_as_before(shape):
    """R28: as if the whole were enlarged; where it is at most 32 times longer than wide, the very same."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    view = EvaluationView(24)
    width, height = (view.shorter_side * side // min(shape) for side in shape)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 24) / 2), round((height - 24) / 2)
    before = torch.from_numpy(np.array(whole.crop((left, top, left + 24, top + 24)))).permute(2, 0, 1)
    assert (view(image).int() - before.int()).abs().max() <= 3
    ordinary = image.crop((0, 0, min(shape[0], 32 * min(shape)), min(shape[1], 32 * min(shape))))
    assert without_far_ends(ordinary) is ordinary
