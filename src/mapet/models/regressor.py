"""CAE's neck: from encoded visible patches to representations of the hidden ones, and from these to what is predicted.

All layers are as wide as each other and attend with the same number of heads; positions are fixed sines and cosines.
Source: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", section 3.1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mapet.compat import Block
from mapet.errors import ModelError

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def sine_positions(grid_size: tuple[int, int], width: int) -> Tensor:
    """Fixed positions of the patches, (1, N_p, width): sines and cosines of the row, then of the column.

    Raises:
        ModelError: `width` is not a multiple of four.
    """
    if width % 4:
        raise ModelError(f"Sine positions need a width that is a multiple of four, not {width}.")
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = (torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid_size)
    rows = rows[:, None].expand(-1, grid_size[1], -1)
    columns = columns.expand(grid_size[0], -1, -1)
    table = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=2)
    return table.flatten(0, 1).unsqueeze(0).float()


class Neck(nn.Module):
    """Latent contextual regressor, and a decoder among the hidden patches alone.

    Args:
        width: Of every layer.
        num_heads: Of every attention.
        regressor_depth: Blocks of cross-attention.
        decoder_depth: timm blocks of self-attention.
        layer_scale: Its initial value in every block.
    """

    def __init__(
        self, width: int, num_heads: int, regressor_depth: int = 4, decoder_depth: int = 4, layer_scale: float = 0.1
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ModelError(f"A width of {width} cannot be shared by {num_heads} heads. Give a number of heads that divides it.")
        self.regressor = nn.ModuleList(RegressorBlock(width, num_heads, layer_scale) for _ in range(regressor_depth))
        self.regressor_norm = LayerNorm(width)
        make = partial(Block, width, num_heads, qkv_bias=True, init_values=layer_scale, norm_layer=LayerNorm)  # pyright: ignore[reportArgumentType]
        self.decoder = nn.ModuleList(make() for _ in range(decoder_depth))
        self.decoder_norm = LayerNorm(width)

    def regress(self, visible: Tensor, queries: Tensor, visible_positions: Tensor, hidden_positions: Tensor) -> Tensor:
        """Representations (B, T, width) of hidden patches, from those of visible ones (B, V, width) and queries (B, T, width)."""
        for block in self.regressor:
            queries = block(queries, visible, hidden_positions, visible_positions)
        return self.regressor_norm(queries)

    def decode(self, latent: Tensor, hidden_positions: Tensor) -> Tensor:
        """What the head predicts from, (B, T, width); hidden patches see each other and nothing else."""
        rows = latent + hidden_positions
        for block in self.decoder:
            rows = block(rows)
        return self.decoder_norm(rows)


class RegressorBlock(nn.Module):
    """Queries attend to visible patches and to themselves; positions are added to queries and keys, not to values.

    Behind the attention the norm takes the place of the residual stream: the MLP adds to the normalised rows.
    """

    def __init__(self, width: int, num_heads: int, layer_scale: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query, self.norm_key, self.norm_value, self.norm_mlp = (LayerNorm(width) for _ in range(4))
        self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.attention_scale, self.mlp_scale = (nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2))

    def forward(self, queries: Tensor, visible: Tensor, hidden_positions: Tensor, visible_positions: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        seen = torch.cat([visible, queries], dim=1)
        positions = torch.cat([visible_positions, hidden_positions], dim=1)
        q = self._heads(self.query(self.norm_query(queries + hidden_positions)))
        k = self._heads(self.key(self.norm_key(seen + positions)))
        v = self._heads(self.value(self.norm_value(seen)))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        rows = self.norm_mlp(queries + self.attention_scale * self.proj(attended))
        return rows + self.mlp_scale * self.mlp(rows)

    def _heads(self, rows: Tensor) -> Tensor:
        """(B, rows, width) to (B, heads, rows, head size)."""
        return rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
