"""De-colorized: see an image grey, predict it in colour.

The grey is a random mixture of the channels.

    minimise   mean over patches of  | prediction - normalised pixels |^2

Source: task (e) of Tian et al., "Beyond Masking". The release feeds one channel, so that its patch embedding cannot be fine-tuned
on colour; ours repeats the grey three times, and feeds one channel to a backbone with `in_chans=1`. The release draws one mixture
for a whole batch (`one_mixture=True`), ours one for every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.objectives.recover import Degradation, Recover

STRONGEST = 0.667


@dataclass(frozen=True)
class Mixture(Degradation):
    """How the channels of every image are mixed.

    Args:
        weights: (B, 3).
    """

    weights: Tensor


class Decolorized(Recover[Mixture]):
    """Recovers the colours of grey images.

    Args:
        backbone: A plain timm ViT, trained in place.
        one_mixture: Draw one mixture for all images of a batch, as released.
        **options: Those of `Recover`.
    """

    summary = "see an image grey, predict it in colour"

    def __init__(self, backbone: VisionTransformer, one_mixture: bool = False, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.one_mixture = one_mixture
        self.channels = int(backbone.patch_embed.proj.in_channels)

    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Mixture:
        """Three weights, each uniform and by itself."""
        draws = torch.rand(1 if self.one_mixture else batch_size, 3, generator=generator, device=generator.device)
        return Mixture(mask, (STRONGEST * draws).expand(batch_size, 3).to(device))

    def degrade(self, images: Tensor, drawn: Mixture) -> Tensor:
        """The grey images, in as many channels as the backbone takes."""
        return decolorize(images, drawn.weights).expand(-1, self.channels, -1, -1)


def decolorize(images: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum (B, 1, H, W) of the channels of normalised images (B, 3, H, W)."""
    return (images * weights.to(images.dtype)[:, :, None, None]).sum(dim=1, keepdim=True)
