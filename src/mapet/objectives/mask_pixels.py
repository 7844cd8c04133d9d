"""Masked pixels: encode a quarter of the patches, predict the pixels of the others.

    minimise   mean over hidden patches of  | prediction - normalised pixels |^2

Source: the masking task (m) of Tian et al., "Beyond Masking"; it is MAE's (He et al., 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.objectives.recover import Degradation, Recover


class MaskPixels(Recover[Degradation]):
    """Recovers the pixels of masked patches."""

    summary = "masked pixels, a quarter of the patches encoded"
    default_mask_ratio = 0.75

    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Degradation:
        """Nothing beside the mask."""
        return Degradation(mask)

    def degrade(self, images: Tensor, drawn: Degradation) -> Tensor:
        """The images themselves: the mask is all there is."""
        return images
