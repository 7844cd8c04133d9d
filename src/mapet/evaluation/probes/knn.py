"""k-nearest neighbours on frozen features: no training, no choices to tune.

Cosine similarity, the k most similar training images vote with weight exp(similarity / temperature). Source: DINO's evaluation
(k = 20, temperature 0.07).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from mapet.evaluation.frozen_backbone import POOLS, FrozenBackbone
from mapet.evaluation.outcomes import Outcomes, classified
from mapet.evaluation.protocol import Metrics, Protocol
from mapet.runtime.processes import gather_rows
from mapet.runtime.rank import this_process

MUCH = 0.03  # share of the images by which pools may differ without a remark
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
    several_processes: ClassVar[bool] = True

    neighbours: Annotated[int, Field(ge=1)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """Accuracies of the vote; in the details top-1 for other numbers of neighbours and for other pools, which cost little."""
        counts = sorted({*REPORTED, self.neighbours})
        outcomes = self._vote(frozen, self.pool, counts)
        others = {str(count): outcomes[count].metrics()["top1"] for count in counts if count <= len(frozen.train_features.labels)}
        details: dict[str, Any] = {"top1_by_neighbours": others}
        if frozen.test_features.cls.shape[1]:
            by_pool = {pool: outcomes if pool == self.pool else self._vote(frozen, pool, [self.neighbours]) for pool in POOLS}
            details["top1_by_pool"] = {pool: votes[self.neighbours].metrics()["top1"] for pool, votes in by_pool.items()}
        return Metrics.of(outcomes[self.neighbours], details)

    def _vote(self, frozen: FrozenBackbone, pool: str, counts: list[int]) -> dict[int, Outcomes]:
        """What so many neighbours find."""
        train, test = frozen.train_features, frozen.test_features
        similarities, labels = nearest(train.pooled(pool), train.labels, test.pooled(pool), counts[-1])
        votes = {
            count: count_votes(similarities[:, :count], labels[:, :count], frozen.num_classes, self.temperature) for count in counts
        }
        return {count: classified(scores, test.labels) for count, scores in votes.items()}

    def remark(self, metrics: Metrics, random: Metrics | None) -> str:
        """A line if the result depends much on the pool."""
        by_pool = metrics.details.get("top1_by_pool", {})
        gains = by_pool if random is None else {pool: by_pool[pool] - random.details["top1_by_pool"][pool] for pool in by_pool}
        images = len(metrics.outcomes.values["top1"]) if metrics.outcomes else 0
        if not gains or max(gains.values()) - min(gains.values()) < max(MUCH, 1.96 * math.sqrt(0.5 / images)):
            return ""
        gain_texts = {pool: "" if random is None else f" ({100 * gains[pool]:+.1f} points)" for pool in gains}
        figures_by_pool = ", ".join(f"{pool} {100 * by_pool[pool]:.1f} %{gain_texts[pool]}" for pool in gains)
        return f"The pool matters here: {figures_by_pool}. --pool all measures every protocol with each."


def nearest(train: Tensor, labels: Tensor, queries: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cosines and labels of the most similar of `train` (n, D), best first: (m, k) each for `queries` (m, D), k at most n.

    Several processes share the queries.
    """
    train = normalize(train, dim=1)
    count = min(neighbours, len(train))
    cosines, neighbour_labels = [queries.new_empty(0, count)], [labels.new_empty(0, count)]
    for start in this_process().share(range(0, len(queries), _CHUNK)):
        similar, indices = (normalize(queries[start : start + _CHUNK], dim=1) @ train.T).topk(count, dim=1)
        cosines.append(similar)
        neighbour_labels.append(labels[indices])
    return gather_rows(torch.cat(cosines)), gather_rows(torch.cat(neighbour_labels))


def count_votes(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Votes (m, C) of neighbours with these cosines and labels, (m, k) each, best first."""
    # relative to the best, which changes no vote's rank and cannot overflow
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return torch.zeros(len(cosines), num_classes, device=cosines.device).scatter_add_(1, labels, weights)
