from itertools import permutations

import pytest
import torch

from mapet.compat import import_torchvision
from mapet.data.jitter import color_jitter, jitter_with
from mapet.errors import SettingsError
from mapet.runtime.seeding import seeded_generator

IMAGES = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def test_equals_torchvision_for_given_factors_and_order():
    import_torchvision()
    from torchvision.transforms import functional

    adjust = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    order = torch.tensor(list(permutations(range(3))))
    factors = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) * 1.6 + 0.2
    for image, result, kinds, factor in zip(IMAGES, jitter_with(IMAGES, factors, order), order, factors, strict=True):
        for kind in kinds.tolist():
            image = adjust[kind](image, float(factor[kind]))
        torch.testing.assert_close(result, image, atol=2e-6, rtol=0)


def test_factors_of_one_change_nothing():
    order = torch.arange(3).expand(6, 3)
    torch.testing.assert_close(jitter_with(IMAGES, torch.ones(6, 3), order), IMAGES, atol=1e-6, rtol=0)
    assert torch.equal(color_jitter(IMAGES, 0.0, seeded_generator("x")), IMAGES)


def test_draws_are_reproducible_and_differ_between_images():
    same = IMAGES[:1].expand(6, -1, -1, -1)
    first = color_jitter(same, 0.4, seeded_generator("x"))
    assert torch.equal(first, color_jitter(same, 0.4, seeded_generator("x")))
    assert not torch.equal(first, color_jitter(same, 0.4, seeded_generator("y")))
    assert len({tuple(image.flatten().tolist()) for image in first}) == 6


@pytest.mark.parametrize("strength", [0.4, 3.0])
def test_factors_stay_in_range_and_every_order_occurs(strength, monkeypatch):
    drawn = {}
    monkeypatch.setattr("mapet.data.jitter.jitter_with", lambda images, factors, order: drawn.update(f=factors, o=order))
    color_jitter(torch.zeros(3000, 3, 1, 1), strength, seeded_generator("x"))
    low, high = max(0.0, 1 - strength), 1 + strength
    assert drawn["f"].min() == pytest.approx(low, abs=0.01)
    assert drawn["f"].max() == pytest.approx(high, abs=0.01)
    orders, counts = drawn["o"].unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 400


def test_result_stays_in_range_and_keeps_its_type():
    result = color_jitter(IMAGES.bfloat16(), 0.9, seeded_generator("x"))
    assert result.dtype == torch.bfloat16
    assert 0 <= result.min() <= result.max() <= 1


def test_negative_strength():
    with pytest.raises(SettingsError, match=r"strength of the colour jitter is -0\.1; allowed: 0"):
        color_jitter(IMAGES, -0.1, seeded_generator("x"))
