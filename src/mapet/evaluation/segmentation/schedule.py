"""The learning rate of a segmentation, step by step."""

from __future__ import annotations


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
