"""AdamW with a learning rate that falls from layer to layer, and its schedule."""

from __future__ import annotations

import re

import torch
from torch import nn

_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
_STEM = re.compile(r"backbone\.(cls_token|mask_token|reg_token|pos_embed|patch_embed\.)")
_UNDECAYED = ("cls_token", "mask_token", "reg_token", "pos_embed")


def layer_of(name: str, depth: int) -> int:
    """Number of the layer that a parameter belongs to: 0 patches and positions, k + 1 block k, depth + 1 everything else."""
    if block := _BLOCK.match(name):
        return int(block[1]) + 1
    return 0 if _STEM.match(name) else depth + 1


def parameter_groups(model: nn.Module, depth: int, layer_decay: float, weight_decay: float) -> list[dict]:
    """Groups for an optimizer with `lr_scale` = layer_decay ** (depth + 1 - layer).

    No weight decay on vectors, biases, position embeddings and tokens. (The published configurations mean that too, but decay
    position embeddings and class token, as their list lacks the prefix "backbone.".)
    """
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and name.rpartition(".")[2] not in _UNDECAYED
        layer = layer_of(name, depth)
        scale, decay = layer_decay ** (depth + 1 - layer), weight_decay if decayed else 0.0
        group = groups.setdefault((layer, decayed), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
    return [*groups.values()]


def make_optimizer(model: nn.Module, depth: int, layer_decay: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW, betas (0.9, 0.999); the learning rate is set at every step."""
    groups = parameter_groups(model, depth, layer_decay, weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(step: int, total_steps: int, warmup_steps: int, lr: float, warmup_ratio: float = 1e-6) -> float:
    """A straight line from `lr` to 0, times a warm-up from `warmup_ratio` to 1; mmsegmentation's "poly" of power 1.

    Args:
        step: Optimizer steps taken before this one.
        total_steps: Of the whole training.
        warmup_steps: At its beginning.
        lr: At scale 1.
        warmup_ratio: Where the warm-up begins.
    """
    warm = 1.0 if step >= warmup_steps else 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return lr * (1 - step / total_steps) * warm
