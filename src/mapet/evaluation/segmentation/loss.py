"""Cross-entropy over the pixels of a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from mapet.data.mask_files import IGNORED


def pixel_loss(logits: Tensor, classes: Tensor, published_denominator: bool = False) -> Tensor:
    """Mean cross-entropy over the pixels of `pixel_count`; 0 where no pixel has a class.

    Args:
        logits: (B, C, h, w).
        classes: (B, H, W) int64; negative where there is no class.
        published_denominator: See `pixel_count`.
    """
    return pixel_loss_sum(logits, classes) / pixel_count(classes, published_denominator).clamp(min=1)


def pixel_loss_sum(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy summed over the pixels with a class, logits (B, C, h, w) first brought to the size of the mask (bilinear)."""
    logits = at_size(logits, (classes.shape[-2], classes.shape[-1]))
    return cross_entropy(logits, classes.clamp(min=IGNORED), ignore_index=IGNORED, reduction="sum")


def pixel_count(classes: Tensor, published_denominator: bool = False) -> Tensor:
    """What a sum over pixels is divided by, a scalar: the pixels of `classes` (B, H, W) that have a class.

    With `published_denominator` all pixels, as mmsegmentation 0.11 does. The more is ignored, the smaller the loss then is.
    """
    return torch.tensor(classes.numel(), device=classes.device) if published_denominator else (classes >= 0).sum()


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinear."""
    return interpolate(logits, size=size, mode="bilinear", align_corners=False)
