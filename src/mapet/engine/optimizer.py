"""AdamW, and parameters grouped for weight decay and layer-wise learning rates.

timm's `param_groups_layer_decay` is not used. It gives the last norm the rate of the last block, shared relative positions that of
the embeddings, and leaves relative positions undecayed; BEiT's fine-tuning, where layer decay for these models comes from, does
none of that (golden `beit_finetune_tiny_a`).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from mapet.compat import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]

UNDECAYED = ("pos_embed", "cls_token", "reg_token")
_EMBEDDINGS = (*UNDECAYED, "mask_token", "patch_embed.", "norm_pre.")


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float = 1e-8) -> torch.optim.AdamW:
    """Fused AdamW, which skips its step where `found_inf` is set; `GuardedStep` sets the learning rate of every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimizer: no weight decay on vectors, biases, position embeddings, class tokens and registers."""
    undecayed = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] in UNDECAYED]
    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=undecayed)


def layer_of(name: str, depth: int) -> int:
    """Which layer a parameter belongs to: 0 for embeddings, k + 1 for block k, depth + 1 for what comes behind the blocks.

    Args:
        name: In a ViT with a head, or in a model that holds one as `backbone`.
        depth: Number of the ViT's blocks.
    """
    name = name.removeprefix("backbone.")
    if name.startswith(_EMBEDDINGS):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


def layer_groups(model: nn.Module, depth: int, layer_decay: float | None, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with the same rate and the same weight decay.

    Args:
        model: A ViT with a head, or a model that holds one as `backbone`.
        depth: Number of the ViT's blocks.
        layer_decay: Scale from one layer to the one before it; None for 1.
        weight_decay: Not on vectors, biases, position embeddings and tokens. (The published configurations of segmentation mean
            that too, but decay position embeddings and class token, as their list lacks the prefix "backbone.".)

    Returns:
        Groups for an optimizer, each with `lr_scale` = layer_decay^(depth + 1 - layer).
    """
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim <= 1 or name.rpartition(".")[2] in UNDECAYED
        key = layer_of(name, depth) if layer_decay is not None else depth + 1, 0.0 if exempt else weight_decay
        groups.setdefault(key, []).append(parameter)
    decay = 1.0 if layer_decay is None else layer_decay
    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_scale": decay ** (depth + 1 - layer)}
        for (layer, weight_decay), parameters in groups.items()
    ]
