"""Block-wise masks: rectangles of random area and shape until enough patches are hidden, drawn for a whole batch at once.

A rectangle has a target area uniform between `min_block` and what is still to be hidden, an aspect ratio log-uniform between 0.3
and 1/0.3, and a place uniform among those where it fits; it never spans a whole row or column of the grid. It is taken if it hides
at least one new patch and not too many. After ten rectangles in a row that could not be taken the published codes differ:

    "under-fill"   BEiT: the image keeps fewer hidden patches (74.5 instead of 75 on average, of 196)
    "top-up"       BEiT v2: the rest is hidden patch by patch, uniformly at random
    "blocks"       CAE: go on with rectangles

Source: Bao et al., "BEiT", section 2.3 and algorithm 1; the three fillings as in the released codes. Masks are strongly biased
towards the centre: with 75 of 196 hidden, a corner in 4 % of the images, the centre in 71 %.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mapet.errors import SettingsError, nearest

FILLINGS = ("under-fill", "top-up", "blocks")
ATTEMPTS = 10
# BEiT hides 75 of 196 patches.
HIDDEN_SHARE = 75 / 196
SMALLEST_SHARE = 16 / 196
LONGEST_ASPECT = 1 / 0.3
# Rectangles after which every image is finished: of 100,000 images with 75, 98 or 118 of 196 hidden, none was left.
ROUNDS = {"under-fill": 20, "top-up": 20, "blocks": 40}


def block_masks(
    batch_size: int,
    grid_size: tuple[int, int],
    num_masked: int,
    generator: torch.Generator,
    device: torch.device | str,
    *,
    filling: str = "top-up",
    min_block: int | None = None,
) -> Tensor:
    """Block-wise masks of a batch.

    Args:
        batch_size: Number of images.
        grid_size: Rows and columns of patches, at least 2 each.
        num_masked: Hidden patches an image; at most so many with "under-fill".
        generator: Source of all draws.
        device: Of the masks.
        filling: "under-fill", "top-up" or "blocks"; what the last leaves open after `ROUNDS` rectangles is topped up.
        min_block: Smallest target area of a rectangle, in patches; by default 16 of 196, and as large a share of other grids.

    Returns:
        (B, N_p) bool in raster order, True = hidden.

    Raises:
        SettingsError: An unknown filling, or a grid without room for rectangles.
    """
    if filling not in FILLINGS:
        raise SettingsError(f"Block-wise masks cannot be filled by '{filling}'. {nearest(filling, FILLINGS)}")
    if min(grid_size) < 2:
        raise SettingsError(f"A grid of {grid_size[0]} x {grid_size[1]} patches has no room for blocks; 2 x 2 is the smallest.")
    smallest = max(1, round(SMALLEST_SHARE * grid_size[0] * grid_size[1])) if min_block is None else min_block
    mask = torch.zeros(batch_size, *grid_size, dtype=torch.bool, device=device)
    open_ended = filling == "blocks"
    active = torch.ones(batch_size, 1, 1, dtype=torch.bool, device=device)
    for _ in range(ROUNDS[filling]):
        draws = torch.rand(4, batch_size, ATTEMPTS, generator=generator, device=generator.device).to(device, non_blocking=True)
        block = _first_that_fits(mask, draws, num_masked, smallest)
        active &= block.any(dim=(1, 2), keepdim=True) | open_ended
        mask |= block & active
        if mask.device.type == "cpu" and not bool((active.flatten() & (mask.sum((1, 2)) < num_masked)).any()):
            break  # on a GPU the check would cost more than the remaining rounds
    flat = mask.flatten(1)
    return flat if filling == "under-fill" else _top_up(flat, num_masked, generator)


def _first_that_fits(mask: Tensor, draws: Tensor, num_masked: int, min_block: int) -> Tensor:
    """Of `ATTEMPTS` rectangles an image, given by uniform draws (4, B, attempts), the first that may be taken: (B, gh, gw) bool."""
    area, aspect, top, left = draws
    rows, columns = mask.shape[1:]
    missing = num_masked - mask.sum(dim=(1, 2)).unsqueeze(1)
    size = min_block + (missing - min_block) * area
    ratio = torch.exp((2 * aspect - 1) * math.log(LONGEST_ASPECT))
    height, width = (size * ratio).sqrt().round().long(), (size / ratio).sqrt().round().long()
    inside = (height < rows) & (width < columns)
    height, width = height.clamp(max=rows - 1), width.clamp(max=columns - 1)
    first_row, first_column = ((rows - height + 1) * top).long(), ((columns - width + 1) * left).long()
    new = height * width - _hidden_inside(mask, first_row, first_column, height, width)
    allowed = inside & (new > 0) & (new <= missing)
    attempt = allowed.to(torch.int8).argmax(dim=1, keepdim=True)
    edges = (first_row, first_row + height, first_column, first_column + width)
    up, down, start, end = (edge.gather(1, attempt).unsqueeze(-1) for edge in edges)
    row = torch.arange(rows, device=mask.device).view(1, -1, 1)
    column = torch.arange(columns, device=mask.device).view(1, 1, -1)
    within = (row >= up) & (row < down) & (column >= start) & (column < end)
    return within & allowed.any(dim=1).view(-1, 1, 1)


def _hidden_inside(mask: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """How many patches of each rectangle (B, attempts) are hidden already, from sums over all rectangles at the upper left."""
    batch, rows, columns = mask.shape
    sums = mask.new_zeros(batch, rows + 1, columns + 1, dtype=torch.int64)
    sums[:, 1:, 1:] = mask.cumsum(1).cumsum(2)

    def up_to(row: Tensor, column: Tensor) -> Tensor:
        return sums.flatten(1).gather(1, row * (columns + 1) + column)

    bottom, right = top + height, left + width
    return up_to(bottom, right) - up_to(top, right) - up_to(bottom, left) + up_to(top, left)


def _top_up(mask: Tensor, num_masked: int, generator: torch.Generator) -> Tensor:
    """Hides uniformly random further patches of (B, N_p) until every image has `num_masked`."""
    noise = torch.rand(mask.shape, generator=generator, device=generator.device).to(mask.device)
    order = noise.masked_fill(mask, -1).argsort(dim=1)
    return torch.zeros_like(mask).scatter_(1, order[:, :num_masked], True)
