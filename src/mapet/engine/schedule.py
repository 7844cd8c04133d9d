"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math


def cosine(step: int, total_steps: int, warmup_steps: int, *, lr: float, min_lr: float, warmup_lr: float) -> float:
    """Linear warm-up from `warmup_lr`, then a cosine from `lr` to `min_lr`, per step.

    The cosine begins where the warm-up ends and reaches `min_lr` at `total_steps`.

    Args:
        step: Optimizer steps taken before this one.
        total_steps: Of the whole training.
        warmup_steps: At the beginning of it.
        lr: The highest learning rate.
        min_lr: The last one.
        warmup_lr: The first one.
    """
    if step < warmup_steps:
        return warmup_lr + (lr - warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def linear(step: int, total_steps: int, warmup_steps: int, lr: float, warmup_ratio: float = 1e-6) -> float:
    """A straight line from `lr` to 0, times a warm-up from `warmup_ratio` to 1; mmsegmentation's "poly" of power 1.

    Args:
        step: Optimizer steps taken before this one.
        total_steps: Of the whole training.
        warmup_steps: At its beginning.
        lr: The highest learning rate.
        warmup_ratio: Where the warm-up begins.
    """
    warm = 1.0 if step >= warmup_steps else 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return lr * (1 - step / total_steps) * warm
