"""BEiT's tables of relative positions for another grid of patches.

Near offsets matter more than far ones, so that the old table is laid out with steps that grow by a constant ratio from the centre
to the new border, and a cubic spline is read off at every new offset (as in BEiT's fine-tuning code; timm's own function
interpolates linearly and differs).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SPECIAL = 3  # rows behind the table: class token to patch, patch to class token, class token to itself
_RATIOS = 1.01, 1.5
_PRECISION = 1e-6


def resize_relative_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table for `new` rows and columns of patches, made from one for `old`.

    Args:
        table: ((2 r - 1) (2 c - 1) + 3, heads) for r rows and c columns.
        old: Rows and columns that it is for.
        new: Rows and columns of the result.

    Returns:
        The same for `new`; the last three rows unchanged.
    """
    from scipy.interpolate import RectBivariateSpline

    if old == new:
        return table
    (rows, columns), (new_rows, new_columns) = old, new
    grids = table[:-SPECIAL].reshape(2 * rows - 1, 2 * columns - 1, -1).double().numpy()
    down, across = _offsets(rows, new_rows), _offsets(columns, new_columns)
    targets = np.arange(1 - new_rows, new_rows), np.arange(1 - new_columns, new_columns)
    resized = [
        RectBivariateSpline(down, across, grids[..., head], kx=min(3, len(down) - 1), ky=min(3, len(across) - 1), s=0)(*targets)
        for head in range(grids.shape[-1])
    ]
    patches = torch.from_numpy(np.stack(resized, axis=-1)).reshape(-1, table.shape[1])
    return torch.cat([patches.to(table.dtype), table[-SPECIAL:]])


def _offsets(old: int, new: int) -> np.ndarray:
    """Where the 2 old - 1 offsets of the old table lie on the new scale: steps of 1, q, q^2 ... from the centre."""
    low, high = _RATIOS
    ratio = low
    while high - low > _PRECISION:
        ratio = (low + high) / 2
        if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1:
            high = ratio
        else:
            low = ratio
    ahead = np.cumsum(ratio ** np.arange(old - 1))  # the last ratio tried, as published
    return np.concatenate([-ahead[::-1], [0.0], ahead])
