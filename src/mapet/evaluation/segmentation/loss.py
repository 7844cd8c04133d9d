"""Cross-entropy over the pixels of a mask."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from mapet.data.mask_files import IGNORED


def pixel_loss(logits: Tensor, classes: Tensor, published_denominator: bool = False) -> Tensor:
    """Mean cross-entropy, logits first brought to the size of the mask (bilinear).

    Args:
        logits: (B, C, h, w).
        classes: (B, H, W) int64; negative where there is no class.
        published_denominator: Divide by all pixels, as mmsegmentation 0.11 does, and not by those that have a class. The more is
            ignored, the smaller the loss then is.

    Returns:
        Scalar; 0 where no pixel has a class.
    """
    logits = at_size(logits, (classes.shape[-2], classes.shape[-1]))
    total = cross_entropy(logits, classes.clamp(min=IGNORED), ignore_index=IGNORED, reduction="sum")
    count = classes.numel() if published_denominator else (classes >= 0).sum().clamp(min=1)
    return total / count


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinear."""
    return interpolate(logits, size=size, mode="bilinear", align_corners=False)
