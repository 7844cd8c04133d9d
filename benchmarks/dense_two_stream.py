"""The naive way to do two-stream attention, for comparison only: raster order and one dense additive mask per sample and head.

Content rows are CLS, all patches and one mask token a target; query rows one a target. Both streams go through every block in full.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from mapet.data.batch import Batch
from mapet.models.backbone import blocks_of, embed_patches, patch_positions, prefix_tokens
from mapet.objectives.base import TokenObjective


def dense_masks(permutation: Tensor, num_context: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """Additive masks (B, heads, N + T, N + T) of the content stream and (B, heads, T, N + T) of the query stream."""
    batch_size, num_patches = permutation.shape
    num_targets = num_patches - num_context
    rank = permutation.argsort(dim=1)
    targets = permutation[:, num_context:].sort(dim=1).values
    rank_of_target = rank.gather(1, targets)
    context = rank < num_context
    always = torch.ones(batch_size, 1, dtype=torch.bool, device=permutation.device)
    free = torch.cat([always, context], dim=1)
    patch_rank = torch.cat([torch.zeros_like(rank[:, :1]), rank], dim=1)

    def sees(own: Tensor, inclusive: bool) -> Tensor:
        earlier = patch_rank[:, None, :] <= own[:, :, None] if inclusive else patch_rank[:, None, :] < own[:, :, None]
        contents = free[:, None, :] | (~free[:, None, :] & earlier)
        later = rank_of_target[:, None, :] > own[:, :, None] if inclusive else rank_of_target[:, None, :] >= own[:, :, None]
        return torch.cat([contents, later], dim=2)

    open_row = torch.cat([free, always.expand(-1, num_targets)], dim=1)[:, None, :]
    content = torch.where(free[:, :, None], open_row, sees(patch_rank, inclusive=True))
    content = torch.cat([content, open_row.expand(-1, num_targets, -1)], dim=1)
    return tuple(
        torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -1e30)[:, None].repeat(1, num_heads, 1, 1)
        for mask in (content, sees(rank_of_target, inclusive=False))
    )


def dense_loss(objective: TokenObjective, batch: Batch, permutation: Tensor) -> Tensor:
    """Summed cross-entropy of MaPeT, computed the dense way; differentiable."""
    backbone = objective.backbone
    num_heads = backbone.blocks[0].attn.num_heads
    content_mask, query_mask = dense_masks(permutation, objective.num_context, num_heads)
    targets = permutation[:, objective.num_context :].sort(dim=1).values
    positions = patch_positions(backbone)
    masks = (objective.mask_token + positions).expand(len(targets), -1, -1)
    masks = masks.gather(1, targets[..., None].expand(-1, -1, masks.shape[-1]))
    patches = embed_patches(backbone, batch.images) + positions
    content, query = torch.cat([prefix_tokens(backbone, len(patches)), patches, masks], dim=1), masks
    for block in blocks_of(backbone):
        normed = block.norm1(content)
        query = _step(block, query, block.norm1(query), normed, query_mask)
        content = _step(block, content, normed, normed, content_mask)
    logits = objective.predict(query)
    return cross_entropy(logits.flatten(0, 1), batch.token_ids.gather(1, targets).flatten(), reduction="sum")


def _step(block: nn.Module, rows: Tensor, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    attn, width = block.attn, rows.shape[-1]
    q = linear(queries, attn.qkv.weight[:width], attn.qkv.bias[:width]).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
    kv = linear(keys, attn.qkv.weight[width:], attn.qkv.bias[width:])
    k, v = kv.unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q * attn.scale) @ k.transpose(-2, -1) + mask
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    rows = rows + block.ls1(attn.proj(mixed))
    return rows + block.ls2(block.mlp(block.norm2(rows)))
