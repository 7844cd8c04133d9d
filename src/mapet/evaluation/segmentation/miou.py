"""Intersection over union, from the pixels of a whole data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mapet.runtime.processes import all_sum_, gather_rows


class ConfusionMatrix:
    """Counts pixels by their true and their predicted class.

    Args:
        num_classes: C.
        device: Where to count.

    Attributes:
        counts: (C, C) int64 of all pixels.
        images: Of every call of `add` in this process, (3, C) int64: pixels of every class that are right, that are true, and
            that are predicted.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.images: list[Tensor] = []

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Adds pixels, both of one shape; where the truth is negative, they count for nothing."""
        labelled = truth >= 0
        pairs = truth[labelled].long() * len(self.counts) + predicted[labelled].long()
        counts = torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)
        self.counts += counts
        self.images.append(_marginals(counts).cpu())

    def share(self) -> Tensor:
        """Adds up the counts of all processes; returns `images` of all of them, (n, 3, C), in the order of their ranks."""
        self.counts = all_sum_(self.counts)
        none = torch.zeros(0, 3, len(self.counts), dtype=torch.int64)
        return gather_rows(torch.cat([none, *(image[None] for image in self.images)]))

    def scores(self) -> Scores:
        """What the counts add up to."""
        return scores_of_pixels(_marginals(self.counts).cpu())


def _marginals(counts: Tensor) -> Tensor:
    return torch.stack([counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)])


def scores_of_pixels(pixels: Tensor) -> Scores:
    """Scores of pixels (3, C) of every class: those that are right, that are true, and that are predicted."""
    right, truth, predicted = pixels.double()
    iou, recall = right / (truth + predicted - right), right / truth
    return Scores(
        miou=float(iou.nanmean()),
        pixel_accuracy=float(right.sum() / truth.sum()),
        mean_class_accuracy=float(recall.nanmean()),
        iou=[None if value != value else value for value in iou.tolist()],
    )


@dataclass(frozen=True)
class Scores:
    """Shares, 0 to 1.

    Args:
        miou: Mean over the classes that are in the truth or predicted anywhere.
        pixel_accuracy: Of all pixels that have a class.
        mean_class_accuracy: Mean over the classes in the truth of the share of their pixels that is found.
        iou: Of every class; None where it is neither in the truth nor predicted.
    """

    miou: float
    pixel_accuracy: float
    mean_class_accuracy: float
    iou: list[float | None]

    @property
    def metrics(self) -> dict[str, float]:
        """All but the list."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "mean_class_accuracy": self.mean_class_accuracy}


def constant_scores(class_pixels: Tensor, predicted: int) -> Scores:
    """Of predicting one class for every pixel.

    Args:
        class_pixels: (C,) int64, true pixels of every class.
        predicted: That class.
    """
    matrix = ConfusionMatrix(len(class_pixels))
    matrix.counts[:, predicted] = class_pixels
    return matrix.scores()
