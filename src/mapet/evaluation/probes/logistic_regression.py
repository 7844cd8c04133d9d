"""Logistic regression: a convex problem, so that a figure depends on the features and the penalty alone, and on no learning rate.

    minimise over W, b    mean over images of the cross-entropy    +   l2 / 2 * |W|^2

In scikit-learn's terms its C is 1 / (l2 * n). Solved with all images at once by L-BFGS with a strong Wolfe line search, in
coordinates in which the problem is round at W = 0: W = V (S + C l2)^-1/2 U, where V S V' is the covariance of the features and C
the number of classes. Features of a ViT are strongly correlated: without that a thousand iterations may not do, with it dozens do;
the optimum is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class LogisticModel:
    """A solution.

    Args:
        weight: (D, C).
        bias: (C,).
        loss: What was minimised.
        gradient: Largest element of the gradient by U and b; 0 at the optimum.
        iterations: Of L-BFGS.
        converged: Whether `gradient` fell to the tolerance.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    gradient: float
    iterations: int
    converged: bool

    def scores(self, features: Tensor) -> Tensor:
        """(n, C) for features (n, D)."""
        return features.to(self.weight.dtype) @ self.weight + self.bias


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    start: LogisticModel | None = None,
) -> LogisticModel:
    """Solves the problem above.

    Args:
        features: (n, D), in the precision that is computed in; float64 is worth it.
        labels: (n,) int64.
        num_classes: C; classes without an image are learned to be unlikely.
        l2: Strength of the penalty, above 0.
        max_iterations: Where to stop without convergence.
        tolerance: Largest element of the gradient that counts as 0.
        start: The solution of a similar problem.
    """
    coordinates = Coordinates.of(features, num_classes * l2)
    zeros = features.new_zeros(features.shape[1] + 1, num_classes)
    weight, bias = (start.weight, start.bias) if start else (zeros[:-1], zeros[-1])
    parameters = [coordinates.enter(weight).requires_grad_(), bias.clone().requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters,
        lr=1,
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        weight = coordinates.leave(parameters[0])
        loss = cross_entropy(features @ weight + parameters[1], labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)  # pyright: ignore[reportArgumentType]
    loss = float(objective().detach())
    gradient = max(float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None)
    iterations = int(solver.state[parameters[0]]["n_iter"])
    weight, bias = coordinates.leave(parameters[0].detach()), parameters[1].detach()
    return LogisticModel(weight, bias, loss, gradient, iterations, gradient <= tolerance)


@dataclass(frozen=True)
class Coordinates:
    """Between weights W (D, C) and the variable U (D, C) of the optimisation.

    Args:
        vectors: (D, D), the features' principal directions as columns.
        scales: (D, 1), how far features reach along each.
    """

    vectors: Tensor
    scales: Tensor

    @classmethod
    def of(cls, features: Tensor, penalty: float) -> Coordinates:
        """Of features (n, D), which need not be centred."""
        centred = features - features.mean(dim=0)
        values, vectors = torch.linalg.eigh((centred.T @ centred / len(features)).cpu())
        scales = (values.clamp(min=0) + penalty).sqrt()[:, None]
        return cls(vectors.to(features.device), scales.to(features.device))

    def enter(self, weight: Tensor) -> Tensor:
        """U of W."""
        return self.scales * (self.vectors.T @ weight)

    def leave(self, inner: Tensor) -> Tensor:
        """W of U."""
        return self.vectors @ (inner / self.scales)


def fit_path(features: Tensor, labels: Tensor, num_classes: int, penalties: tuple[float, ...]) -> dict[float, LogisticModel]:
    """A solution for each of `penalties`, from the strongest on, each starting from the one before."""
    models: dict[float, LogisticModel] = {}
    last = None
    for l2 in sorted(penalties, reverse=True):
        models[l2] = last = fit_logistic(features, labels, num_classes, l2, start=last)
    return models
