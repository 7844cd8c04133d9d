"""Blurred: see an image through a random filter, predict it sharp.

Every image has a filter of its own, 7 x 7 pixels and from all channels to all, with weights around that of an average.

    minimise   mean over patches of  | prediction - normalised pixels |^2

Source: task (d) of Tian et al., "Beyond Masking". The released code cannot run here; this is what it means to do. It draws the
bias of the filter once for all images, ours one for every image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from mapet.objectives.recover import Degradation, Recover

SIDE, DEVIATION = 7, 0.02


@dataclass(frozen=True)
class Blur(Degradation):
    """The filter of every image.

    Args:
        weight: (B, 3, 3, 7, 7): to channel, from channel, rows, columns.
        bias: (B, 3).
    """

    weight: Tensor
    bias: Tensor


class Blurred(Recover[Blur]):
    """Recovers sharp images from blurred ones."""

    summary = "see an image blurred, predict it sharp"

    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Blur:
        """Weights normal around 1/49, biases uniform within a convolution's usual bound."""
        shape = (batch_size, 3, 3, SIDE, SIDE)
        weight = 1 / SIDE**2 + DEVIATION * torch.randn(shape, generator=generator, device=generator.device)
        bound = (3 * SIDE**2) ** -0.5
        bias = bound * (2 * torch.rand(batch_size, 3, generator=generator, device=generator.device) - 1)
        return Blur(mask, weight.to(device), bias.to(device))

    def degrade(self, images: Tensor, drawn: Blur) -> Tensor:
        """The filtered images; beyond the border there is the mean colour."""
        return blur(images, drawn.weight, drawn.bias)


def blur(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Images (B, 3, H, W), each through its own filter."""
    batch = len(images)
    if batch == 0:
        return images  # a convolution cannot have no groups
    weight, bias = weight.to(images.dtype), bias.to(images.dtype)
    filtered = conv2d(
        images.reshape(1, -1, *images.shape[2:]), weight.flatten(0, 1), bias.flatten(), padding=SIDE // 2, groups=batch
    )
    return filtered.view_as(images)
