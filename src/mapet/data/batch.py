"""What an objective is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Normalised images and the visual tokens of their patches.

    Args:
        images: (B, 3, H, W) float, normalised as the backbone expects.
        token_ids: (B, N_p) int64, one visual token for every patch in raster order; None where no objective needs them.
    """

    images: Tensor
    token_ids: Tensor | None = None
