"""k-nearest neighbours on frozen features: no training, no choices to tune.

Cosine similarity, the k most similar training images vote with weight exp(similarity / temperature). Source: DINO's evaluation
(k = 20, temperature 0.07).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mapet.evaluation.metrics import accuracies
from mapet.evaluation.protocol import Findings, Protocol
from mapet.evaluation.subject import Subject

_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class KNN(Protocol):
    """Weighted vote of the nearest training images.

    Args:
        pool: "mean", "cls" or "both".
        neighbours: k; all images where there are fewer.
        temperature: Of the votes.
    """

    name: ClassVar[str] = "knn"

    neighbours: int = 20
    temperature: float = 0.07

    def judge(self, subject: Subject) -> Findings:
        """Accuracies of the vote."""
        train, test = subject.train_features, subject.test_features
        votes = knn_votes(
            train.pooled(self.pool),
            train.labels,
            test.pooled(self.pool),
            subject.num_classes,
            self.neighbours,
            self.temperature,
        )
        return Findings(accuracies(votes, test.labels, subject.num_classes))


def knn_votes(train: Tensor, labels: Tensor, queries: Tensor, num_classes: int, neighbours: int, temperature: float) -> Tensor:
    """Votes for every class.

    Args:
        train: (n, D) features.
        labels: (n,) int64.
        queries: (m, D) features.
        num_classes: C.
        neighbours: k.
        temperature: Of the weights exp(cosine / temperature).

    Returns:
        (m, C) float32.
    """
    train = normalize(train, dim=1)
    votes = torch.zeros(len(queries), num_classes, device=queries.device)
    for start in range(0, len(queries), _CHUNK):
        similarity = normalize(queries[start : start + _CHUNK], dim=1) @ train.T
        best, indices = similarity.topk(min(neighbours, len(train)), dim=1)
        # relative to the best, which changes no vote's rank and cannot overflow
        weights = ((best - best[:, :1]) / temperature).exp()
        votes[start : start + _CHUNK].scatter_add_(1, labels[indices], weights)
    return votes
