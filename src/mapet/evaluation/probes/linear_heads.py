"""Many linear layers trained side by side, as one product of matrices: every layer of the backbone, every learning rate at once.

Their losses are added up, so that each is trained as if it were alone. That several learning rates share one pass over the features
is how DINOv2's linear evaluation sweeps them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.compat import Lars
from mapet.runtime.seeding import seeded_generator

_CHUNK = 4096
_ADAMW, _LARS = "adamw", "lars"
OPTIMIZERS = (_ADAMW, _LARS)


@dataclass(frozen=True)
class Candidate:
    """How a layer is trained.

    Args:
        lr: At its highest.
        weight_decay: On the weight and not on the bias.
    """

    lr: float
    weight_decay: float


class LinearHeads(nn.Module):
    """R x L linear layers to C classes: R ways of training, each on the features of L layers of the backbone.

    Args:
        candidates: The R ways of training.
        layers: L.
        features: D.
        classes: C.
        init_std: Deviation of the normal distribution that the weights start from; the biases start at 0.
        seed: Of that draw; all R start alike.
    """

    def __init__(self, candidates: list[Candidate], layers: int, features: int, classes: int, init_std: float, seed: int) -> None:
        super().__init__()
        start = init_std * torch.randn(layers, features, classes, generator=seeded_generator(seed, "linear heads"))
        self.candidates, self.layers, self.classes = candidates, layers, classes
        self.weights = nn.ParameterList(nn.Parameter(start.clone()) for _ in candidates)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(layers, 1, classes)) for _ in candidates)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, L, R, C) of features (B, L, D)."""
        weight, bias = torch.cat([*self.weights], dim=2), torch.cat([*self.biases], dim=2)
        scores = torch.baddbmm(bias, features.transpose(0, 1), weight)
        return scores.unflatten(2, (len(self.candidates), self.classes)).transpose(0, 1)

    def loss(self, features: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
        """Cross-entropy, a mean over images and a sum over the R x L layers.

        Args:
            features: (B, L, D).
            labels: (B,) int64.
            counted: (B,) bool, which images are learned from; None = all.
        """
        scores = self(features).flatten(1, 2)
        losses = cross_entropy(scores.transpose(1, 2), labels[:, None].expand(-1, scores.shape[1]), reduction="none").sum(dim=1)
        return losses.mean() if counted is None else (losses * counted).sum() / counted.sum().clamp(min=1)

    def optimizer(self, kind: str) -> torch.optim.Optimizer:
        """AdamW, or LARS as in CAE's linear evaluation (momentum 0.9, trust 0.001, not on biases)."""
        groups = []
        for candidate, weight, bias in zip(self.candidates, self.weights, self.biases, strict=True):
            groups.append({"params": [weight], "lr": candidate.lr, "peak": candidate.lr, "weight_decay": candidate.weight_decay})
            groups.append({"params": [bias], "lr": candidate.lr, "peak": candidate.lr, "weight_decay": 0.0})
        if kind == _ADAMW:
            return torch.optim.AdamW(groups, fused=True)
        for group in groups[::2]:
            group["always_adapt"] = True
        return Lars(groups, momentum=0.9, trust_coeff=0.001)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def evaluate(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Share of right answers and mean cross-entropy, (L, R) float64 each; a layer whose scores are not finite is never right.

        Args:
            features: (n, L, D).
            labels: (n,) int64.
        """
        right = torch.zeros(self.layers, len(self.candidates), dtype=torch.float64)
        losses = torch.zeros_like(right)
        for rows, answers in zip(features.split(_CHUNK), labels.split(_CHUNK), strict=True):
            scores = self(rows)
            expected = answers[:, None, None].expand(scores.shape[:-1])
            finite = scores.isfinite().all(dim=-1)
            right += ((scores.argmax(dim=-1) == expected) & finite).sum(dim=0).cpu()
            losses += cross_entropy(scores.movedim(-1, 1), expected, reduction="none").cpu().double().sum(dim=0)
        return right / len(labels), losses / len(labels)

    @torch.no_grad()
    def scores_of(self, features: Tensor, layer: int, candidate: int) -> Tensor:
        """Scores (n, C) of one of the layers for features (n, L, D)."""
        return features[:, layer] @ self.weights[candidate][layer] + self.biases[candidate][layer]


def train_heads(
    heads: list[LinearHeads],
    batches: Iterator[tuple[Tensor, Tensor, list[Tensor | None]]],
    kind: str,
    factor: Callable[[int], float],
    after_step: Callable[[int], None],
) -> None:
    """Trains all heads on the same batches.

    Args:
        heads: Sets of linear layers.
        batches: Features (B, L, D), labels (B,), and for each of `heads` the rows it learns from (None = all).
        kind: One of OPTIMIZERS.
        factor: What the learning rates are multiplied with in a step, counted from 0.
        after_step: Called with the number of steps taken.
    """
    optimizers = [entry.optimizer(kind) for entry in heads]
    for step, (features, labels, counted) in enumerate(batches):
        scale = factor(step)
        for entry, optimizer, rows in zip(heads, optimizers, counted, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak"]
            optimizer.zero_grad()
            entry.loss(features, labels, rows).backward()
            optimizer.step()
        after_step(step + 1)


def cosine(position: float, total: float, warmup: float = 0.0) -> float:
    """1 at the end of a linear warm-up from 0, then a cosine to 0 at `total`."""
    if position < warmup:
        return position / warmup
    return 0.5 * (1 + math.cos(math.pi * (position - warmup) / (total - warmup)))
