"""Two ways of hiding patches from a backbone: leaving them out, and putting a mask token in their place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mapet.compat import VisionTransformer, checkpoint_seq
from mapet.models.backbone import blocks_of, embed_patches, enter_blocks, final_norm, patch_positions, prefix_tokens


def encode_patches(backbone: VisionTransformer, images: Tensor, patches: Tensor | None) -> Tensor:
    """The final representations (B, K, D) of some patches, which see each other and the prefix tokens, and nothing else.

    Args:
        backbone: The ViT.
        images: (B, C, H, W), normalised.
        patches: (B, K) int64, which ones; None for all in raster order.
    """
    rows = embed_patches(backbone, images) + patch_positions(backbone)
    if patches is not None:
        rows = gather_rows(rows, patches)
    rows = enter_blocks(backbone, torch.cat([prefix_tokens(backbone, len(images)), rows], dim=1))
    return final_norm(backbone)(run_blocks(backbone, rows))[:, backbone.num_prefix_tokens :]


def encode_masked(backbone: VisionTransformer, images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """The final representations (B, N_p, D) of all patches, where hidden ones enter as the mask token.

    Args:
        backbone: The ViT.
        images: (B, C, H, W), normalised.
        mask: (B, N_p) bool, True = hidden.
        mask_token: (1, 1, D).
    """
    rows = run_blocks(backbone, masked_sequence(backbone, images, mask, mask_token))
    return final_norm(backbone)(rows[:, backbone.num_prefix_tokens :])


def masked_sequence(backbone: VisionTransformer, images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """What enters the first block, (B, P + N_p, D): prefix tokens, and every patch or, where hidden, the mask token."""
    patches = embed_patches(backbone, images)
    patches = torch.where(mask.unsqueeze(-1), mask_token.to(patches.dtype), patches)
    rows = torch.cat([prefix_tokens(backbone, len(patches)), patches + patch_positions(backbone)], dim=1)
    return enter_blocks(backbone, rows)


def run_blocks(backbone: VisionTransformer, rows: Tensor, blocks: Iterable[nn.Module] | None = None) -> Tensor:
    """The blocks of `backbone`, or others of its make, with timm's activation checkpointing where it is switched on."""
    layers = [*(blocks_of(backbone) if blocks is None else blocks)]
    if backbone.grad_checkpointing:
        return checkpoint_seq(layers, rows)
    for block in layers:
        rows = block(rows)
    return rows


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows (B or 1, N, D) at `indices` (B, T): (B, T, D)."""
    batch_size, _, width = *indices.shape, rows.shape[-1]
    return rows.expand(batch_size, -1, -1).gather(1, indices.unsqueeze(-1).expand(-1, -1, width))
