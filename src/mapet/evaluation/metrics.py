"""Figures of a classification, from scores of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.errors import DataError


def accuracies(scores: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Shares of images whose class was found.

    Args:
        scores: (n, C), the higher the likelier.
        labels: (n,) int64.
        num_classes: C, or fewer where some outputs stand for no class of the data.

    Returns:
        `top1`; `top5`, among the five likeliest (all classes where there are fewer); `mean_per_class`, the mean over the classes
        that occur of the share found in each.

    Raises:
        DataError: n is 0.
    """
    if not len(labels):
        raise DataError("No test image could be read, so that there is nothing to judge by.")
    best, labels = scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu(), labels.cpu()
    found = best == labels[:, None]
    right = found[:, 0].double()
    counts = torch.bincount(labels, minlength=num_classes)
    per_class = torch.bincount(labels, weights=right, minlength=num_classes)[counts > 0] / counts[counts > 0]
    top1, top5, mean = right.mean(), found.any(dim=1).double().mean(), per_class.mean()
    return {"top1": float(top1), "top5": float(top5), "mean_per_class": float(mean)}
