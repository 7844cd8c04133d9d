"""Encoding some patches of an image and not the others: hidden patches cost nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.compat import VisionTransformer, checkpoint_seq
from mapet.models.backbone import embed_patches, enter_blocks, final_norm, patch_positions, prefix_tokens
from mapet.objectives.permutation import take


def encode_some(backbone: VisionTransformer, images: Tensor, patches: Tensor | None) -> Tensor:
    """The final representations (B, K, D) of some patches, which see each other and the prefix tokens, and nothing else.

    Args:
        backbone: The ViT.
        images: (B, C, H, W), normalised.
        patches: (B, K) int64, which ones; None for all in raster order.
    """
    rows = embed_patches(backbone, images) + patch_positions(backbone)
    if patches is not None:
        rows = take(rows, patches)
    rows = enter_blocks(backbone, torch.cat([prefix_tokens(backbone, len(images)), rows], dim=1))
    rows = checkpoint_seq(backbone.blocks, rows) if backbone.grad_checkpointing else backbone.blocks(rows)
    return final_norm(backbone)(rows)[:, backbone.num_prefix_tokens :]
