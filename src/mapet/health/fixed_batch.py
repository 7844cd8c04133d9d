"""A few fixed images that a network is shown now and then, as it will be used: without augmentation, in evaluation mode.

What it makes of them is comparable over a run, and costs no step of it anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.config.settings import PretrainSettings
from mapet.data.batch import Batch
from mapet.data.loader import RegionRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.views import Rendering, normalise
from mapet.engine.callbacks import evaluating
from mapet.health.context import PretrainContext
from mapet.models.backbone import image_size, normed_tokens
from mapet.objectives.base import Objective
from mapet.runtime.device import autocast
from mapet.runtime.seeding import seeded_generator

SHOWN_IMAGES = 64
RANK_BUCKETS = 8
_AT_ONCE = 16
_ROWS = 4096
_SWEEPS = 5  # of taking out means of rows and columns, until both are gone where the diagonal is missing


@dataclass(frozen=True)
class FixedBatch:
    """Images and their tokens.

    Args:
        images: (n, 3, H, W) uint8 at the backbone's image size.
        token_ids: (n, N_p) int64, or None where the objective has none.
    """

    images: Tensor
    token_ids: Tensor | None

    @classmethod
    def load(cls, run: PretrainContext) -> FixedBatch:
        """The first crop of `SHOWN_IMAGES` images drawn from the seed; those that cannot be read are left out."""
        generator = seeded_generator(run.settings.seed, "vital signs", "images")
        indices = torch.randperm(len(run.source), generator=generator)[:SHOWN_IMAGES].tolist()
        size = image_size(run.objective.backbone)[0]
        renderer = RegionRenderer(run.regions, Rendering(size), run.tokens.rendering)
        [loaded] = make_loader(run.source, renderer, [BatchItem(indices)])
        return cls(loaded.images.to(run.device), run.tokens.tokens(loaded, run.device))

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, settings: PretrainSettings) -> Iterator[tuple[slice, Batch]]:
        """The normalised images in small batches, with their indices."""
        for start in range(0, len(self), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            images = normalise(self.images[part].float() / 255, settings.training.mean, settings.training.std)
            yield part, Batch(images, None if self.token_ids is None else self.token_ids[part])


@dataclass(frozen=True)
class TokenSigns:
    """How well tokens of the fixed images are predicted.

    Args:
        costs: (n, n) mean cross-entropy, in nats a token, of the predictions for image i against the tokens that image j has at the
            same positions; the diagonal is the loss.
        by_rank: (T,) accuracy of the targets in the order of the permutation, 0 to 1; None where there is no order.
    """

    costs: np.ndarray
    by_rank: np.ndarray | None

    @property
    def gain(self) -> float:
        """How much better predictions fit the tokens of their own image than those of others, in nats a token.

        What is frequent, anywhere or at a position, fits all images alike: the difference measures the dependence on the image.
        """
        images = len(self.costs)
        own_cost = np.trace(self.costs) / images
        return float((self.costs.sum() - np.trace(self.costs)) / (images * (images - 1)) - own_cost)

    @property
    def gain_error(self) -> float:
        """Standard error of a `gain` that is none: from how costs of wrong pairs scatter beyond effects of i and of j."""
        images = len(self.costs)
        others = ~np.eye(images, dtype=bool)
        rest = np.where(others, self.costs, np.nan)
        for _ in range(_SWEEPS):
            rest = rest - np.nanmean(rest, axis=0)
            rest = rest - np.nanmean(rest, axis=1, keepdims=True)
        return float(rest[others].std() / images**0.5)

    def rank_scalars(self) -> dict[str, float]:
        """Accuracy of the first eighth of the targets, the second, ...: "accuracy_by_rank/1" to "/8"."""
        if self.by_rank is None:
            return {}
        parts = np.array_split(self.by_rank, min(RANK_BUCKETS, len(self.by_rank)))
        return {f"accuracy_by_rank/{number}": float(part.mean()) for number, part in enumerate(parts, 1)}


@torch.no_grad()
def token_signs(
    objective: Objective, fixed_batch: FixedBatch, settings: PretrainSettings, device: torch.device
) -> TokenSigns | None:
    """Lets the objective predict the tokens of the fixed images, hidden in the same way every time; None if it gives no logits."""
    if fixed_batch.token_ids is None or len(fixed_batch) < 2:
        return None
    costs, correct, ordered = [], [], True
    with evaluating(objective):
        for part, batch in fixed_batch.parts(settings):
            generator = seeded_generator(settings.seed, "vital signs", "corruption", part.start, device=device)
            corruption = objective.corrupt(batch, generator)
            with autocast(device, settings.training.precision):
                output = objective(batch, corruption, return_logits=True)
            if output.logits is None or output.target_positions is None or batch.token_ids is None:
                return None
            ordered &= hasattr(corruption, "permutation")
            costs.append(_costs(output.logits, fixed_batch.token_ids, output.target_positions))
            correct.append(_correct(output.logits, batch.token_ids, output.target_positions))
    by_rank = torch.cat(correct).float().mean(dim=0).cpu().numpy() if ordered else None
    return TokenSigns(torch.cat(costs).cpu().double().numpy(), by_rank)


def _costs(logits: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy (B, n) of predictions (B, T, vocab) at patches (B, T), -1 for none, against tokens (n, N_p)."""
    valid = (positions >= 0).unsqueeze(1)
    targets = token_ids[:, positions.clamp(min=0)].transpose(0, 1)  # (B, n, T)
    each = -logits.float().log_softmax(dim=2).transpose(1, 2).gather(1, targets)
    return (each * valid).sum(dim=2) / valid.sum(dim=2).clamp(min=1)


def _correct(logits: Tensor, token_ids: Tensor, positions: Tensor) -> Tensor:
    """Whether the likeliest token (B, T) is the image's own; False where nothing is predicted."""
    return (logits.argmax(dim=2) == token_ids.gather(1, positions.clamp(min=0))) & (positions >= 0)


@torch.no_grad()
def feature_ranks(
    backbone: VisionTransformer, fixed_batch: FixedBatch, settings: PretrainSettings, device: torch.device
) -> tuple[float, float]:
    """Effective rank of patch features, of at most a few thousand patches, and of the means of images, behind the final norm."""
    features = []
    with evaluating(backbone), autocast(device, settings.training.precision):
        for _, batch in fixed_batch.parts(settings):
            features.append(normed_tokens(backbone, batch.images)[:, backbone.num_prefix_tokens :].float())
    patches = torch.cat(features)
    rows = patches.flatten(0, 1)
    return effective_rank(rows[:: -(-len(rows) // _ROWS)]), effective_rank(patches.mean(dim=1))


def effective_rank(features: Tensor) -> float:
    """The entropy, exponentiated, of the singular values of centred features as shares of their sum: from 1 to min(n - 1, D).

    Source: Roy and Vetterli, "The effective rank", 2007, of the centred matrix; 1 where all features are the same.

    Args:
        features: (n, D), any dtype and device; computed in float64 on the CPU.
    """
    rows = features.double().cpu() if features.device.type != "mps" else features.cpu().double()
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = values.sum()
    if total <= 0:
        return 1.0
    shares = values[values > 0] / total
    return float((-(shares * shares.log()).sum()).exp())
