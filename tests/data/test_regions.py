from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from mapet.config.settings import ViewSettings
from mapet.data.regions import FixedCrop, RandomCrops, Region, central_square, draw_region, regions_from, regions_of
from mapet.errors import SettingsError

KEY = "0123456789abcdef" * 2
STORED = RandomCrops(4, (0.3, 0.9), flip=False, seed=5)
PINNED = [Region(276, 27, 487, 308, flip=True), Region(165, 139, 449, 364, flip=True), Region(92, 0, 481, 374, flip=True)]


def many(regions: RandomCrops, width: int = 400, height: int = 300) -> list[Region]:
    return [regions.region(width, height, KEY, number) for number in range(2000)]


def test_a_crop_stays_what_it_was() -> None:
    """Stores that exist depend on these very boxes: whoever has to change them raises the VERSION of the store's format."""
    regions = RandomCrops(3, seed=7)
    assert [regions.region(500, 375, KEY, number) for number in range(3)] == PINNED
    assert regions.region(8, 8, "f" * 32, 0) == Region(0, 0, 7, 8)


def test_crops_are_functions_of_seed_key_and_number_only() -> None:
    crops, state = RandomCrops(9, seed=1), torch.random.get_rng_state()
    regions = [crops.region(400, 300, KEY, number) for number in range(9)]
    assert [crops.region(400, 300, KEY, number) for number in reversed(range(9))] == regions[::-1]
    assert len(set(regions)) == 9
    assert torch.equal(state, torch.random.get_rng_state())
    assert crops.region(400, 300, KEY[::-1], 0) != regions[0]
    assert RandomCrops(9, seed=2).region(400, 300, KEY, 0) != regions[0]


def test_stored_and_online_crops_of_a_seed_are_the_same_but_online_never_repeats() -> None:
    stored, online = RandomCrops(3, seed=4), RandomCrops(None, seed=4)
    assert [stored.view_index(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [online.view_index(epoch) for epoch in range(7)] == [*range(7)]
    assert stored.region(40, 30, KEY, 2) == online.region(40, 30, KEY, 2)


def test_regions_follow_scale_and_aspect_ratio() -> None:
    boxes = np.array([region.box for region in many(RandomCrops(None, (0.2, 0.9)))])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = widths * heights / 120_000, widths / heights
    assert (boxes[:, :2].min(), boxes[:, 2].max(), boxes[:, 3].max()) == (0, 400, 300)
    assert 0.195 < areas.min() < 0.21
    assert 0.8 < areas.max() < 0.905
    assert 0.74 < ratios.min() < 0.76
    assert 1.31 < ratios.max() < 1.35
    small = areas < 0.5  # large boxes of a wide shape often do not fit and are drawn again
    assert abs(np.log(ratios[small]).mean()) < 0.02


def test_half_are_mirrored_or_none() -> None:
    flipped = Counter(region.flip for region in many(RandomCrops(None)))
    assert 900 < flipped[True] < 1100
    plain = many(RandomCrops(None, flip=False))
    assert not any(region.flip for region in plain)
    assert [region.box for region in plain] == [region.box for region in many(RandomCrops(None))]


def test_where_nothing_fits_the_largest_central_part_is_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_region(300, 10, generator, (1.0, 1.0), flip=False) == Region(143, 0, 156, 10)
    assert draw_region(10, 300, generator, (1.0, 1.0), flip=False) == Region(0, 143, 10, 156)
    assert draw_region(1, 1, generator, flip=False) == Region(0, 0, 1, 1)


def test_the_fixed_crop_is_the_central_square() -> None:
    assert FixedCrop().region(300, 200, KEY, 0) == central_square(300, 200) == Region(50, 0, 250, 200)
    assert FixedCrop().region(3, 8, "other", 5) == Region(0, 2, 3, 5)
    assert {FixedCrop().view_index(epoch) for epoch in range(5)} == {0}


@pytest.mark.parametrize("regions", [FixedCrop(), STORED, RandomCrops(1), RandomCrops(None, (0.5, 1)), RandomCrops(2, (1, 1))])
def test_a_description_gives_the_crops_again(regions: FixedCrop | RandomCrops) -> None:
    described = json.loads(json.dumps(regions.describe()))
    assert regions_from(described) == regions
    assert described == regions.describe()


@pytest.mark.parametrize(
    "change",
    [{"name": "squeezed"}, {"count": 0}, {"count": "4"}, {"count": 2.5}, {"scale": [0.3]}, {"more": 1}, {"name": "online"}],
)
def test_a_description_that_means_nothing_here_is_refused(change: dict) -> None:
    with pytest.raises(SettingsError, match=r"Unknown view|allowed: 1 or more"):
        regions_from(STORED.describe() | change)
    for missing in ("scale", "flip", "seed"):
        with pytest.raises(SettingsError, match="Unknown view"):
            regions_from({name: value for name, value in STORED.describe().items() if name != missing})


def test_options_are_those_that_store_such_crops() -> None:
    assert FixedCrop().options() == RandomCrops(None).options() == ""
    assert RandomCrops(8).options() == " --views 8 --scale 0.2 1"
    assert STORED.options() == " --views 4 --scale 0.3 0.9 --no-flip --seed 5"


def test_the_settings_of_a_run() -> None:
    assert regions_of(ViewSettings(), 3) == FixedCrop()
    view = ViewSettings(name="stored", count=2, scale=(0.4, 0.8), flip=False, seed=9)
    assert regions_of(view, 3) == RandomCrops(2, (0.4, 0.8), False, 9)
    assert regions_of(view.model_copy(update={"name": "online"}), 3) == RandomCrops(None, (0.4, 0.8), False, 3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SettingsError, match="number of stored views is 0; allowed: 1 or more"):
        RandomCrops(0)
    with pytest.raises(SettingsError, match=r"scale is \(0\.5, 0\.2\); allowed"):
        RandomCrops(2, (0.5, 0.2))
