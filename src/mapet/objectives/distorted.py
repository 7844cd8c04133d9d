"""Distorted: see an image through a fisheye, predict it straight.

A point p of the square [-1, 1] x [-1, 1] shows what lies at  p + (c - p) |c - p| m:  the farther from the centre c, the more it
is drawn towards it.

    minimise   mean over patches of  | prediction - normalised pixels |^2

Source: task (c) of Tian et al., "Beyond Masking".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from mapet.objectives.recover import Degradation, Recover

STRENGTHS = (0.15, 0.25)


@dataclass(frozen=True)
class Distortion(Degradation):
    """How every image is bent.

    Args:
        centre: (B, 2) in [-1, 1], from left to right and from top to bottom.
        strength: (B,).
    """

    centre: Tensor
    strength: Tensor


class Distorted(Recover[Distortion]):
    """Recovers straight images from distorted ones."""

    summary = "see an image distorted, predict it straight"

    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Distortion:
        """Centre and strength, both uniform."""
        draws = torch.rand(batch_size, 3, generator=generator, device=generator.device).to(device)
        low, high = STRENGTHS
        return Distortion(mask, 2 * draws[:, :2] - 1, low + (high - low) * draws[:, 2])

    def degrade(self, images: Tensor, drawn: Distortion) -> Tensor:
        """The images as the fisheye shows them."""
        return distort(images, drawn.centre, drawn.strength)


def distort(images: Tensor, centre: Tensor, strength: Tensor) -> Tensor:
    """Images (B, C, H, W) seen through a fisheye at `centre` (B, 2) of `strength` (B,)."""
    vertical, horizontal = (torch.linspace(-1, 1, side, device=images.device, dtype=images.dtype) for side in images.shape[-2:])
    points = torch.stack(torch.meshgrid(horizontal, vertical, indexing="xy"), dim=-1)
    towards = centre.to(images.dtype)[:, None, None] - points
    shift = towards * towards.norm(dim=-1, keepdim=True) * strength.to(images.dtype)[:, None, None, None]
    return grid_sample(images, points + shift, mode="bilinear", padding_mode="zeros", align_corners=True)
