"""Block-wise masks are distributed as those of the released codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mapet.errors import SettingsError
from mapet.objectives.block_masks import block_masks
from tests.golden import load_golden

SETS = {
    "beit_v1_75": (75, "under-fill"),
    "beit_v2_75": (75, "top-up"),
    "beit_v2_118": (118, "top-up"),
    "cae_98": (98, "blocks"),
}
DRAWS = 4000
STANDARD_ERRORS = 5


def draw(num_masked: int, filling: str, batch_size: int = DRAWS, grid: tuple[int, int] = (14, 14), seed: int = 0) -> Tensor:
    return block_masks(batch_size, grid, num_masked, torch.Generator().manual_seed(seed), "cpu", filling=filling)


def components(masks: Tensor) -> Tensor:
    """4-connected groups of hidden patches of each mask (n, h, w): the largest number spreads; one patch of each group keeps it."""
    own = torch.arange(1, masks[0].numel() + 1).view(masks[0].shape)
    labels = torch.where(masks, own, 0)
    while True:
        spread = labels.clone()
        for ours, theirs in ((spread[:, 1:], labels[:, :-1]), (spread[:, :-1], labels[:, 1:])):
            torch.maximum(ours, theirs, out=ours)
        for ours, theirs in ((spread[..., 1:], labels[..., :-1]), (spread[..., :-1], labels[..., 1:])):
            torch.maximum(ours, theirs, out=ours)
        spread = torch.where(masks, spread, 0)
        if torch.equal(spread, labels):
            return (masks & (labels == own)).flatten(1).sum(1)
        labels = spread


@pytest.mark.parametrize("name", SETS)
def test_every_patch_is_hidden_as_often_as_in_the_release(name: str) -> None:
    description, golden = load_golden("mim/blockwise_mask_stats_a")
    grid, theirs = description["config"]["grid"], description["stats_large_sample_20000"][name]["n"]
    expected = golden[f"{name}.freq_map_large_sample"].double()
    found = draw(*SETS[name], grid=(grid, grid)).double().mean(0).view(grid, grid)
    error = (expected * (1 - expected) * (1 / DRAWS + 1 / theirs)).sqrt()
    assert ((found - expected).abs() < STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("name", SETS)
def test_counts_and_components_are_those_of_the_release(name: str) -> None:
    description, _ = load_golden("mim/blockwise_mask_stats_a")
    expected, grid = description["stats"][name], description["config"]["grid"]
    masks = draw(*SETS[name], batch_size=1000, grid=(grid, grid), seed=1)
    counts = masks.sum(1).double()
    assert abs(counts.mean() - expected["count"]["mean"]) <= STANDARD_ERRORS * 2 * expected["count"]["se_of_mean"]
    assert int(counts.max()) == expected["count"]["max"]
    found = components(masks.view(-1, grid, grid)).double()
    scale = (1 + expected["n"] / len(masks)) ** 0.5 * expected["components_4conn"]["se_of_mean"]
    assert abs(found.mean() - expected["components_4conn"]["mean"]) < STANDARD_ERRORS * scale


def test_same_generator_same_masks_and_images_differ() -> None:
    assert torch.equal(draw(75, "top-up", 8), draw(75, "top-up", 8))
    assert not torch.equal(draw(75, "top-up", 8), draw(75, "top-up", 8, seed=1))
    assert len(draw(75, "top-up", 8).unique(dim=0)) == 8


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (8, 8), (3, 20), (32, 32)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_any_grid_is_filled_exactly(grid: tuple[int, int], share: float) -> None:
    wanted = max(1, round(share * grid[0] * grid[1]))
    for filling in ("top-up", "blocks"):
        assert (draw(wanted, filling, 16, grid).sum(1) == wanted).all()
    assert (draw(wanted, "under-fill", 16, grid).sum(1) <= wanted).all()


def test_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(SettingsError, match=r"cannot be filled by 'topup'.*Did you mean 'top-up'"):
        draw(75, "topup")
    with pytest.raises(SettingsError, match="1 x 14 patches has no room"):
        draw(5, "top-up", grid=(1, 14))
