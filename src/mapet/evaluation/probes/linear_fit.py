"""Training the candidates of a linear probe, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mapet.errors import NonFiniteLossError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.probes.images import ProbeImages
from mapet.evaluation.probes.linear_heads import LinearHeads, cosine, train_heads
from mapet.evaluation.probes.linear_settings import LinearSettings
from mapet.runtime.progress import progress

_BATCH_NORM_EPS = 1e-6
_NO_EPS = torch.finfo(torch.float32).tiny  # torch 2.11 refuses 0; added to a variance of 1e-12 or more it changes no bit


class Normaliser(nn.BatchNorm1d):
    """Brings features (B, L, F) to mean 0 and deviation 1 over images, without parameters of its own.

    In training mode by the batch, and by running means later (BatchNorm); after `standardise`, always by one set of images.
    """

    def __init__(self, layers: int, features: int) -> None:
        super().__init__(layers * features, eps=_BATCH_NORM_EPS, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, L, F) to the same."""
        return super().forward(input.flatten(1)).view_as(input)

    def standardise(self, features: Tensor) -> None:
        """Takes mean and deviation of features (n, L, F); what does not vary becomes 0."""
        variance, mean = torch.var_mean(features.flatten(1), dim=0)
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.copy_(mean)
        self.running_var.copy_(torch.where(variance > 1e-10 * mean.square(), variance, 1.0).clamp(min=1e-12))
        self.eps = _NO_EPS
        self.eval()


@dataclass
class FittedProbe:
    """A trained probe.

    Args:
        normaliser: Of features (B, L, F).
        heads: The candidates.
        chosen: Layer and rate, counted from 0.
    """

    normaliser: nn.Module
    heads: LinearHeads
    chosen: tuple[int, int] = (0, 0)

    def choose(self, number: int) -> None:
        """Takes a candidate by its place in the flattened (L, R)."""
        self.chosen = divmod(number, len(self.heads.candidates))

    def scores(self, features: Tensor) -> Tensor:
        """Scores (n, C) of the chosen candidate for features (n, L, F).

        Raises:
            NonFiniteLossError: It diverged.
        """
        scores = self.heads.scores_of(self._normalised(features), *self.chosen)
        if not scores.isfinite().all():
            candidate = self.heads.candidates[self.chosen[1]]
            raise NonFiniteLossError(
                f"The linear probe diverged with lr={candidate.lr:g}. Give a lower one, or several to choose from."
            )
        return scores

    def evaluate(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Share of right answers and mean cross-entropy of every candidate, (L, R) each."""
        return self.heads.evaluate(self._normalised(features), labels)

    def describe(self, layer: int, candidate: int) -> dict[str, Any]:
        """A candidate: its block, counted from 1, where there are several; learning rate, weight decay."""
        of_block = {"block": layer + 1} if self.heads.layers > 1 else {}
        return {**of_block, **asdict(self.heads.candidates[candidate])}

    def describe_all(self, features: Tensor, labels: Tensor, validation_split: Tensor | None) -> dict[str, Any]:
        """Every candidate with its share of right answers on held-out and on test images, where there is more than one."""
        right = self.evaluate(features, labels)[0]
        candidates = [
            {
                **self.describe(layer, candidate),
                **({} if validation_split is None else {"held_out_top1": float(validation_split[layer, candidate])}),
                "test_top1": float(right[layer, candidate]),
            }
            for layer, candidate in torch.cartesian_prod(*map(torch.arange, right.shape)).tolist()
        ]
        return {"candidates": candidates} if len(candidates) > 1 else {}

    @torch.no_grad()
    def _normalised(self, features: Tensor) -> Tensor:
        self.normaliser.eval()
        return self.normaliser(features)


def train(
    protocol: LinearSettings,
    images: ProbeImages,
    frozen: FrozenBackbone,
    after_epoch: Callable[[int, FittedProbe], None] | None = None,
) -> tuple[FittedProbe, FittedProbe | None]:
    """All candidates, trained on all images; and their twins, trained on what is not held out, where something is.

    Args:
        protocol: The settings.
        images: What to learn from.
        frozen: For the number of classes, the device and the title.
        after_epoch: Called with the epochs done and the first of both.
    """
    per_epoch = len(images.labels) // min(protocol.batch_size, len(images.labels))
    epochs = max(protocol.epochs, -(-protocol.min_steps // per_epoch))
    steps = epochs * per_epoch
    stream = iter(images.batches(protocol.batch_size, epochs, protocol.seed))
    first = next(stream)
    layers, features = first[0].shape[1:]
    normaliser = _normaliser(protocol, images, layers, features).to(frozen.device)
    sizes = (layers, features, frozen.num_classes, protocol.init_std, protocol.seed)
    heads = [LinearHeads(protocol.candidates, *sizes).to(frozen.device) for _ in range(1 if images.validation_split is None else 2)]
    fitted = [FittedProbe(normaliser, entry) for entry in heads]

    def batches() -> Iterator[tuple[Tensor, Tensor, list[Tensor | None]]]:
        for raw, labels, learned in chain([first], stream):
            normaliser.train(protocol.normalise == "batch_norm" and len(raw) > 1)  # one image has no deviation
            yield normaliser(raw), labels, [None, learned][: len(heads)]

    def factor(step: int) -> float:
        position = step if protocol.schedule == "step" else step // per_epoch * per_epoch
        return cosine(position, steps, protocol.warmup_epochs * per_epoch)

    with progress(f"Linear probe, {frozen.title}", steps) as bar:

        def after_step(done: int) -> None:
            bar.advance()
            if after_epoch is not None and done % per_epoch == 0:
                after_epoch(done // per_epoch, fitted[0])

        train_heads(heads, batches(), protocol.optimizer, factor, after_step)
    return fitted[0], fitted[1] if len(fitted) == 2 else None


def choose(fitted: FittedProbe, twin: FittedProbe, images: ProbeImages) -> tuple[FittedProbe, Tensor]:
    """Takes the candidate whose twin is right most often on the held-out images; of equals, the one of lower cross-entropy.

    Returns:
        The probe, and the shares (L, R) of the twins.

    Raises:
        NonFiniteLossError: The cross-entropy of no candidate is finite.
    """
    right, losses = twin.evaluate(*images.validation_part())
    if not losses.isfinite().any():
        raise NonFiniteLossError("Every linear probe diverged: no learning rate that was tried is low enough. Give lower ones.")
    order = sorted(range(right.numel()), key=lambda number: (-float(right.flatten()[number]), float(losses.flatten()[number])))
    fitted.choose(next(number for number in order if losses.flatten()[number].isfinite()))
    return fitted, right


def _normaliser(protocol: LinearSettings, images: ProbeImages, layers: int, features: int) -> nn.Module:
    if protocol.normalise == "none":
        return nn.Identity()
    normaliser = Normaliser(layers, features)
    if protocol.normalise == "standardise":
        normaliser.standardise(images.unaugmented())
    return normaliser
