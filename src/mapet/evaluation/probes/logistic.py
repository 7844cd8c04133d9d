"""Logistic regression on cached features: a probe without learning rate, epochs and augmentation.

Features are standardised, the penalty is chosen on a held-out part of the training images, and the problem is then solved on all of
them. Evaluations of DINOv2 and of few-shot learning use logistic regression in this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.outcomes import classified
from mapet.evaluation.probes.logistic_regression import LogisticModel, fit_path
from mapet.evaluation.protocol import Metrics, Protocol
from mapet.evaluation.validation_split import hold_out_rows, values_of
from mapet.runtime.progress import progress, say

_Positive = Annotated[float, Field(gt=0)]
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class LogisticProbe(Protocol):
    """Settings.

    Args:
        pool: "mean", "cls" or "both".
        l2: Penalty on the squared weights; of several the best on the held-out part is taken.
        held_out_share: Of every class.
        seed: Of the held-out part.
    """

    name: ClassVar[str] = "logistic"
    several_processes: ClassVar[bool] = True

    l2: _Positive | tuple[_Positive, ...] = PENALTIES
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """Accuracies of the solution; in the details the penalties and how well each did."""
        train, test = frozen.train_features, frozen.test_features
        features, others = standardised(train.pooled(self.pool), test.pooled(self.pool))
        penalties = values_of(self.l2)
        with progress(f"Logistic regression, {frozen.title}", 2) as bar:
            l2, penalty_facts = choose_penalty(
                features, train.labels, frozen.num_classes, penalties, self.held_out_share, self.seed
            )
            bar.advance()
            model = fit_path(features, train.labels, frozen.num_classes, tuple(p for p in penalties if p >= l2))[l2]
            bar.advance()
        warn_unless_converged(model, frozen.title)
        return Metrics.of(classified(model.scores(others), test.labels), {"l2": l2, **facts_of(model), **penalty_facts})


def choose_penalty(
    features: Tensor, labels: Tensor, num_classes: int, penalties: tuple[float, ...], share: float, seed: int
) -> tuple[float, dict[str, Any]]:
    """The penalty that is best on a held-out part; of equals, the stronger.

    Args:
        features: (n, D), standardised.
        labels: (n,) int64.
        num_classes: C.
        penalties: To choose from; the only one is taken without a look.
        share: Of every class that is held out.
        seed: Of the held-out part.

    Returns:
        The penalty, and for the details the accuracy of each.

    Raises:
        DataError: No class has two images, so that none can be held out.
    """
    if len(penalties) == 1:
        return penalties[0], {}
    validation_split = hold_out_rows(labels, share, seed)
    models = fit_path(features[~validation_split], labels[~validation_split], num_classes, penalties)
    right = {l2: _share_right(model, features[validation_split], labels[validation_split]) for l2, model in models.items()}
    return max(right, key=lambda l2: right[l2]), {"held_out_top1": {f"{l2:g}": share for l2, share in right.items()}}


def standardised(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All (., D) in float64 (on MPS float32), by mean and deviation of `train`; what does not vary becomes 0."""
    precision = torch.float32 if train.device.type == "mps" else torch.float64
    variance, mean = torch.var_mean(train.to(precision), dim=0, correction=0)
    deviation = torch.where(variance > 1e-10 * mean.square(), variance, 1.0).sqrt().clamp(min=1e-6)
    return tuple((features.to(precision) - mean) / deviation for features in (train, *others))


def facts_of(model: LogisticModel) -> dict[str, Any]:
    """How the solver ended, as JSON."""
    return {"converged": model.converged, "iterations": model.iterations, "largest_gradient": model.gradient}


def warn_unless_converged(model: LogisticModel, title: str) -> None:
    """A line if the optimum was not reached."""
    if not model.converged:
        say(
            f"Logistic regression, {title}: not converged after {model.iterations} iterations (gradient {model.gradient:.1e}). A "
            "stronger penalty (--set l2=...) converges faster."
        )


def _share_right(model: LogisticModel, features: Tensor, labels: Tensor) -> float:
    return float((model.scores(features).argmax(dim=1) == labels).double().mean())
