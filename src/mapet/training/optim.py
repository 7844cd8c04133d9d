"""AdamW by the paper's rules, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math

import torch

from mapet.config.settings import TrainingSettings
from mapet.models.weights import decay_groups
from mapet.objectives.base import Objective


def make_optimizer(objective: Objective, settings: TrainingSettings) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that the objective trains.

    No weight decay on vectors, biases, position embeddings, the class token and registers. The mask token is decayed, as in MaPeT's
    release.
    """
    groups = decay_groups(objective, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def learning_rate(step: int, total_steps: int, warmup_steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up from `warmup_lr`, then a cosine from `lr` to `min_lr`, per step.

    The cosine begins where the warm-up ends and reaches `min_lr` at `total_steps`.

    Args:
        step: Optimizer steps taken before this one.
        total_steps: Of the whole run.
        warmup_steps: At the beginning of it.
        settings: For the rates.
    """
    if step < warmup_steps:
        return settings.warmup_lr + (settings.lr - settings.warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
