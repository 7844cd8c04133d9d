"""SimMIM: masked pixels with nothing but a linear head.

Squares of patches are replaced by a mask token; the backbone sees all positions, and one linear layer predicts the pixels of the
hidden patches as they were fed, normalised by the run's mean and deviation.

    minimise   mean over hidden pixels of  | prediction - pixel |

Source: Xie et al., "SimMIM: a Simple Framework for Masked Image Modeling": squares of 32 pixels, 60 % hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.errors import ModelError
from mapet.models.backbone import grid_size, patch_size
from mapet.models.weights import init_linears
from mapet.objectives.base import ObjectiveOutput
from mapet.objectives.encoding import encode_masked
from mapet.objectives.masking import MaskCorruption, random_mask
from mapet.objectives.patch_pixels import patchify
from mapet.objectives.pixels import PixelObjective


class SimMIM(PixelObjective[MaskCorruption]):
    """Predicts the pixels of masked squares.

    Args:
        backbone: A plain timm ViT, trained in place.
        mean: Per channel, what the images of a batch were normalised with.
        std: Per channel.
        mask_ratio: Share of the squares that are hidden, rounded up.
        square: Side of a square in patches.
    """

    summary = "masked pixels, squares of patches hidden, a linear head"

    def __init__(
        self,
        backbone: VisionTransformer,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        mask_ratio: float = 0.6,
        square: Annotated[int, Field(ge=1)] = 2,
    ) -> None:
        super().__init__(backbone, mean, std)
        self.squares = tuple(side // square for side in grid_size(backbone)) if square >= 1 else (0, 0)
        if any(side % square for side in grid_size(backbone)) or not 0 < mask_ratio < 1:
            raise ModelError(
                f"{grid_size(backbone)} patches cannot be cut into squares of {square} of which {mask_ratio} are hidden. Give a "
                "square that divides the grid, and a mask_ratio between 0 and 1."
            )
        self.square = square
        self.num_hidden = min(math.ceil(mask_ratio * math.prod(self.squares)), math.prod(self.squares) - 1)
        self.patch_size = patch_size(backbone)
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, 3 * self.patch_size**2)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linears(self.head)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides whole squares, uniformly at random."""
        size, (rows, columns) = len(batch.images), self.squares
        squares = random_mask(size, rows * columns, self.num_hidden, generator, batch.images.device).view(size, rows, columns)
        mask = squares.repeat_interleave(self.square, 1).repeat_interleave(self.square, 2).flatten(1)
        return MaskCorruption.of_known_counts(mask, self.num_hidden * self.square**2, equal=True)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Mean absolute error of hidden patches, summed over them."""
        predicted = self.head(encode_masked(self.backbone, batch.images, corruption.mask, self.mask_token))
        errors = (predicted - patchify(batch.images, self.patch_size)).abs().mean(dim=2)
        return ObjectiveOutput(errors.where(corruption.mask, 0).sum(), corruption.mask.sum())
