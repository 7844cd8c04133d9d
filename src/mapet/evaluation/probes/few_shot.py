"""Few labels: logistic regression on the features of a few images of every class, for several draws of them.

As many images of every class are drawn (or all of a class that has fewer): a share of the training images divided by the number of
classes, and at least one. Features are standardised by all training images, which takes no labels. The figure is the mean over the
draws; test images are the same for all.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mapet.errors import DataError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.outcomes import Outcomes, classified
from mapet.evaluation.probes.logistic import choose_penalty, facts_of, standardised, warn_unless_converged
from mapet.evaluation.probes.logistic_regression import fit_path
from mapet.evaluation.protocol import Metrics, Protocol
from mapet.evaluation.validation_split import draw_rows, rows_by_class, values_of
from mapet.runtime.progress import progress

_Positive = Annotated[float, Field(gt=0)]
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
WITHOUT_HELD_OUT = 1e-1


@dataclass(frozen=True, kw_only=True)
class FewShot(Protocol):
    """Settings of both presets.

    Args:
        pool: "mean", "cls" or "both".
        share: Of the training images.
        draws: How many subsets are tried.
        l2: Penalty of the logistic regression; several are chosen from on a held-out part of the few images. Where every class has
            only one image, it is the one nearest to 0.1.
        held_out_share: Of the few images of every class.
        seed: Of the draws.
    """

    name: ClassVar[str] = "fewshot"
    several_processes: ClassVar[bool] = True

    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    draws: Annotated[int, Field(ge=1)] = 5
    l2: _Positive | tuple[_Positive, ...] = PENALTIES
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: int = 0

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """Mean accuracies over the draws; in the details each draw, and the deviation over them."""
        results: list[tuple[Outcomes, dict[str, Any]]] = []
        with progress(f"Few-shot ({100 * self.share:g} %), {frozen.title}", self.draws) as bar:
            for draw in range(self.draws):
                results.append(self._one_draw(frozen, draw))
                bar.advance()
        draws = [outcomes.metrics() for outcomes, _ in results]
        metrics = {name: statistics.mean(entry[name] for entry in draws) for name in draws[0]}
        spread = {name: statistics.stdev(entry[name] for entry in draws) for name in draws[0]} if self.draws > 1 else {}
        details = {"deviation": spread, "draws": [{**entry, **facts} for entry, (_, facts) in zip(draws, results, strict=True)]}
        return Metrics(metrics, details, _mean([outcomes for outcomes, _ in results]))

    def _one_draw(self, frozen: FrozenBackbone, draw: int) -> tuple[Outcomes, dict[str, Any]]:
        train, test = frozen.train_features, frozen.test_features
        rows = few_rows(train.labels, self.share, self.seed, draw)
        labels = train.labels[rows]
        features, others = standardised(train.pooled(self.pool), test.pooled(self.pool))
        features = features[rows]
        l2, penalty_facts = self._penalty(features, labels, frozen.num_classes, draw)
        model = fit_path(features, labels, frozen.num_classes, (l2,))[l2]
        warn_unless_converged(model, frozen.title)
        facts = {"images": len(rows), "l2": l2, **penalty_facts, **facts_of(model)}
        return classified(model.scores(others), test.labels), facts

    def _penalty(self, features: Tensor, labels: Tensor, num_classes: int, draw: int) -> tuple[float, dict[str, Any]]:
        penalties = values_of(self.l2)
        try:
            return choose_penalty(features, labels, num_classes, penalties, self.held_out_share, self.seed + draw)
        except DataError:
            return min(penalties, key=lambda l2: abs(l2 - WITHOUT_HELD_OUT)), {}


def _mean(draws: list[Outcomes]) -> Outcomes:
    """Of every image, the share of the draws in which its class was found."""
    values = {name: torch.stack([outcomes.values[name] for outcomes in draws]).mean(dim=0) for name in draws[0].values}
    return Outcomes(values, draws[0].labels)


def few_rows(labels: Tensor, share: float, seed: int, draw: int) -> Tensor:
    """The training images of one draw, sorted: as many of every class.

    Args:
        labels: (n,) int64.
        share: Of the n images; at least one of every class.
        seed: Of all draws.
        draw: Which one, from 0.

    Returns:
        (m,) int64, on the device of `labels`.
    """
    groups = rows_by_class(labels)
    count = max(1, round(share * len(labels) / len(groups)))
    drawn = [draw_rows(rows, count, seed, "few-shot", draw, number) for number, rows in groups]
    return torch.cat(drawn).sort().values.to(labels.device)
