"""What an objective is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        ids = None if self.token_ids is None else self.token_ids.to(device, non_blocking=True)
        return Batch(self.images.to(device, non_blocking=True), ids)
