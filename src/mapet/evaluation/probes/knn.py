"""k-nearest neighbours on frozen features: no training, no choices to tune.

Cosine similarity, the k most similar training images vote with weight exp(similarity / temperature). Source: DINO's evaluation
(k = 20, temperature 0.07).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from mapet.evaluation.metrics import accuracies
from mapet.evaluation.protocol import Findings, Protocol
from mapet.evaluation.subject import Subject

REPORTED = (1, 5, 10, 20, 50, 100, 200)
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

    neighbours: Annotated[int, Field(ge=1)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07

    def judge(self, subject: Subject) -> Findings:
        """Accuracies of the vote; in the details top-1 for other numbers of neighbours, which cost nothing more."""
        train, test = subject.train_features, subject.test_features
        counts = sorted({*REPORTED, self.neighbours})
        similarities, labels = nearest(train.pooled(self.pool), train.labels, test.pooled(self.pool), counts[-1])
        found = {}
        for count in counts:
            votes = count_votes(similarities[:, :count], labels[:, :count], subject.num_classes, self.temperature)
            found[count] = accuracies(votes, test.labels, subject.num_classes)
        others = {str(count): figures["top1"] for count, figures in found.items() if count <= len(train.labels)}
        return Findings(found[self.neighbours], {"top1_by_neighbours": others})


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
    return count_votes(*nearest(train, labels, queries, neighbours), num_classes, temperature)


def nearest(train: Tensor, labels: Tensor, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cosines and labels of the most similar of `train` (n, D), best first: (m, k) each for `queries` (m, D), k at most n."""
    train = normalize(train, dim=1)
    count = min(neighbours, len(train))
    cosines = queries.new_empty(len(queries), count)
    found = torch.empty(len(queries), count, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        cosines[rows], indices = (normalize(queries[rows], dim=1) @ train.T).topk(count, dim=1)
        found[rows] = labels[indices]
    return cosines, found


def count_votes(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Votes (m, C) of neighbours with these cosines and labels, (m, k) each, best first."""
    # relative to the best, which changes no vote's rank and cannot overflow
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return torch.zeros(len(cosines), num_classes, device=cosines.device).scatter_add_(1, labels, weights)
