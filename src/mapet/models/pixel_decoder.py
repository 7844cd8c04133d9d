"""A light decoder from encoded patches to pixels, thrown away after pre-training.

Source: Tian et al., "Beyond Masking" (the decoder of He et al.'s MAE, with positions added to all tokens).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mapet.compat import Block
from mapet.errors import ModelError
from mapet.models.weights import init_linears

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def sinusoid_table(length: int, width: int) -> Tensor:
    """Fixed positions along one dimension, (1, length, width): sine and cosine in turn, ever slower."""
    column = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (2 * (column // 2) / width)
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).unsqueeze(0).float()


class PixelDecoder(nn.Module):
    """Encoded patches to the pixels of all patches.

    Args:
        width_in: Of the encoded patches.
        num_patches: N_p.
        values: Predicted for every patch.
        width: Of the decoder.
        depth: timm blocks of self-attention.
        num_heads: Of its attention.
    """

    positions: Tensor

    def __init__(self, width_in: int, num_patches: int, values: int, width: int = 384, depth: int = 4, num_heads: int = 6) -> None:
        super().__init__()
        if width % num_heads or depth < 1:
            raise ModelError(f"A decoder of width {width} with {num_heads} heads and {depth} blocks cannot be built.")
        self.bridge = nn.Linear(width_in, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        make = partial(Block, width, num_heads, qkv_bias=True, norm_layer=LayerNorm)  # pyright: ignore[reportArgumentType]
        self.blocks = nn.Sequential(*(make() for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, values)
        self.register_buffer("positions", sinusoid_table(num_patches, width), persistent=False)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linears(self.blocks)
        init_linears(self.head)

    def forward(self, encoded: Tensor, patches: Tensor | None) -> Tensor:
        """Pixels (B, N_p, values) of all patches from encoded ones.

        Args:
            encoded: (B, K, width_in).
            patches: (B, K) int64, which ones they are; None for all in raster order.
        """
        rows = self.bridge(encoded)
        if patches is not None:
            everywhere = self.mask_token.to(rows.dtype).expand(len(rows), self.positions.shape[1], -1)
            rows = everywhere.scatter(1, patches.unsqueeze(-1).expand_as(rows), rows)
        return self.head(self.norm(self.blocks(rows + self.positions)))
