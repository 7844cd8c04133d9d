"""Colour jitter for whole batches on the device: brightness, contrast and saturation, in a random order per image."""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.data.views import per_channel
from mapet.errors import SettingsError

BRIGHTNESS, CONTRAST, SATURATION = range(3)
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)


def color_jitter(images: Tensor, strength: float, generator: torch.Generator, total: int | None = None, start: int = 0) -> Tensor:
    """Draws factors from U(max(0, 1 - strength), 1 + strength) and an order for every image, and applies them.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        strength: 0 or more; 0.4 in the paper.
        generator: Where the draws come from; on the CPU, they are the same for every device.
        total: Images of the whole batch, for which factors are drawn, where `images` are only some of it.
        start: Which of them `images` begin with.

    Returns:
        (B, 3, H, W) in [0, 1], same type and device.

    Raises:
        SettingsError: A negative strength.
    """
    if strength < 0:
        raise SettingsError(f"The strength of the colour jitter is {strength}; allowed: 0 (none) or more.")
    if strength == 0:
        return images
    low, high = max(0.0, 1 - strength), 1 + strength
    draws = torch.rand(2, len(images) if total is None else total, 3, generator=generator, device=generator.device)
    draws = draws[:, start : start + len(images)].to(images.device)
    factors = (low + (high - low) * draws[0]).to(images.dtype)
    return jitter_with(images, factors, order=draws[1].argsort(dim=1))


def jitter_with(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Applies given factors in a given order; a factor of 1 changes nothing.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        factors: (B, 3): brightness, contrast, saturation.
        order: (B, 3) int64: which of them (0, 1, 2) comes first, second, third.

    Returns:
        (B, 3, H, W), clamped to [0, 1] after every change.
    """
    weights = per_channel(_GREY_WEIGHTS, images.dtype, images.device)
    for kind in order.unbind(dim=1):
        factor = factors.gather(1, kind[:, None]).view(-1, 1, 1, 1)
        kind = kind.view(-1, 1, 1, 1)
        grey = (images * weights).sum(dim=1, keepdim=True)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        base = torch.where(kind == SATURATION, grey, torch.where(kind == CONTRAST, mean, 0.0))
        images = torch.lerp(base, images, factor).clamp(0, 1)
    return images
