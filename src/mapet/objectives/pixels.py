"""Shared by objectives on pixels: undoing the normalisation of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.objectives.base import Corruption, Objective


class PixelObjective(Objective[Corruption]):
    """An objective whose targets are made from pixels.

    Args:
        backbone: A plain timm ViT, trained in place.
        mean: Per channel, what the images of a batch were normalised with; those of the run.
        std: Per channel.
    """

    needs = ("pixels",)
    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: VisionTransformer, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__(backbone)
        dtype = next(backbone.parameters()).dtype
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(-1, 1, 1), persistent=False)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) back to [0, 1]."""
        return images * self.std + self.mean
