"""MaskFeat: masked prediction of histograms of oriented gradients (HOG).

A descriptor of local shape, invariant to brightness and contrast, in place of pixels or tokens: nothing has to be trained first.

    minimise   mean over hidden patches of  | prediction - HOG |^2

Source: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training": 9 orientations, cells of 8 x 8 pixels in
patches of 16 (two cells a side, at any patch size here), every colour channel by itself, 40 % of the patches hidden in blocks.
Every cell is normalised by itself; the windows by which the release weighs pixels are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.errors import ModelError
from mapet.models.backbone import grid_size, patch_size
from mapet.models.weights import init_linears
from mapet.objectives.base import ObjectiveOutput
from mapet.objectives.block_masks import block_masks
from mapet.objectives.encoding import encode_masked
from mapet.objectives.masking import MaskCorruption, count_of
from mapet.objectives.patch_pixels import patchify
from mapet.objectives.pixels import PixelObjective

ORIENTATIONS, CELLS_A_SIDE = 9, 2


class MaskFeat(PixelObjective[MaskCorruption]):
    """Predicts the HOG of masked patches.

    Args:
        backbone: A plain timm ViT with patches of an even number of pixels, trained in place.
        mean: Per channel, what the images of a batch were normalised with.
        std: Per channel.
        mask_ratio: Share of the patches that are hidden, or their number.
    """

    summary = "masked histograms of oriented gradients, blocks hidden"

    def __init__(
        self,
        backbone: VisionTransformer,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        mask_ratio: float = 0.4,
    ) -> None:
        super().__init__(backbone, mean, std)
        self.num_hidden = count_of("mask_ratio", mask_ratio, self.num_patches, 1, self.num_patches - 1)
        self.cell, rest = divmod(patch_size(backbone), CELLS_A_SIDE)
        if rest:
            raise ModelError(
                f"Patches of {patch_size(backbone)} pixels cannot be cut into two cells a side; give an even patch size."
            )
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, 3 * ORIENTATIONS * CELLS_A_SIDE**2)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linears(self.head)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides blocks of patches."""
        mask = block_masks(len(batch.images), grid_size(self.backbone), self.num_hidden, generator, batch.images.device)
        return MaskCorruption.of_known_counts(mask, self.num_hidden, equal=True)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Mean squared error of hidden patches, summed over them."""
        predicted = self.head(encode_masked(self.backbone, batch.images, corruption.mask, self.mask_token))
        targets = patchify(oriented_gradients(self.pixels(batch.images), self.cell), CELLS_A_SIDE)
        errors = (predicted - targets).square().mean(dim=2)
        return ObjectiveOutput(errors.where(corruption.mask, 0).sum(), corruption.mask.sum())


@torch.no_grad()
def oriented_gradients(pixels: Tensor, cell: int) -> Tensor:
    """HOG of images (B, C, H, W): (B, C * 9, H / cell, W / cell), the histogram of every cell and channel of length one."""
    horizontal, vertical = _gradients(pixels)
    angle = torch.atan2(vertical, horizontal) % math.pi
    orientation = (angle / math.pi * ORIENTATIONS).long().clamp_max(ORIENTATIONS - 1)
    votes = torch.zeros(*pixels.shape[:2], ORIENTATIONS, *pixels.shape[2:], dtype=pixels.dtype, device=pixels.device)
    votes.scatter_(2, orientation.unsqueeze(2), torch.hypot(horizontal, vertical).unsqueeze(2))
    histograms = F.avg_pool2d(votes.flatten(1, 2), cell).unflatten(1, (-1, ORIENTATIONS))
    return F.normalize(histograms, dim=2).flatten(1, 2)


def _gradients(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's differences from left to right and from top to bottom, (B, C, H, W) each; borders are mirrored."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="reflect")
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    down = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return across[..., 2:] - across[..., :-2], down[:, :, 2:] - down[:, :, :-2]
