"""The attentive probe: a learned query attends to the patch tokens, and a linear layer classifies the result.

    tokens -> BatchNorm without affine part -> cross-attention of one learned query, MLP -> Linear

For backbones whose patches have more information than their mean. The idea is CAE's ("attentive probing") and V-JEPA's; the module
is timm's `AttentionPoolLatent`, the settings are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.compat import AttentionPoolLatent
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import BatchItem, sequential_batches, shared
from mapet.data.source import ImageSource
from mapet.data.views import FixedView
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.outcomes import classified
from mapet.evaluation.probes.images import order_of
from mapet.evaluation.probes.linear_heads import cosine
from mapet.evaluation.probes.representations import describe_all, described_in_all, patch_tokens
from mapet.evaluation.protocol import Metrics, Protocol
from mapet.evaluation.supervised.length import describe_extended_schedule
from mapet.models.backbone import num_heads
from mapet.runtime.progress import progress
from mapet.runtime.rank import this_process
from mapet.runtime.seeding import seeded_globally

CACHE_BYTES = 4 * 2**30
_BATCH_SIZE = 256
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class AttentiveProbe(Protocol):
    """Settings.

    Args:
        pool: "mean" only, and without effect: the probe pools the patch tokens by itself.
        epochs: Passes over the training images.
        min_steps: At least so many steps are taken, in more epochs where there are few images.
        warmup_epochs: Linear, from 0; a cosine to 0 follows.
        batch_size: Images a step; all of them where there are fewer.
        lr: Of AdamW, at its highest.
        weight_decay: On matrices.
        seed: Of order and start.

    Raises:
        SettingsError: Another pooling.
    """

    name: ClassVar[str] = "attentive"
    several_processes: ClassVar[bool] = True
    allowed_pools: ClassVar[tuple[str, ...]] = ("mean",)

    pool: str = "mean"
    epochs: _Count = 20
    min_steps: _Count = 1000
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    batch_size: _Count = 256
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    seed: int = 0

    def note(self, train_images: int) -> str:
        """A line if the training has more epochs because there are few images."""
        return describe_extended_schedule(train_images, self.batch_size, self.epochs, self.min_steps, self.warmup_epochs)

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """Accuracies of the trained probe."""
        probe = self.fit(frozen)
        test = Tokens(frozen, frozen.test, "test")
        scores, labels = zip(*((probe(tokens), labels) for tokens, labels in test.in_order()), strict=True)
        outcomes = classified(torch.cat(scores), torch.cat(labels))
        return Metrics.of(outcomes, {"parameters": sum(parameter.numel() for parameter in probe.parameters())})

    def fit(self, frozen: FrozenBackbone) -> nn.Module:
        """Trains the probe; the backbone stays as it is."""
        images = Tokens(frozen, frozen.train, "training")
        per_epoch = max(1, len(images) // self.batch_size)
        epochs = max(self.epochs, -(-self.min_steps // per_epoch))
        probe = build_probe(frozen, self.seed)
        matrices, vectors = ([p for p in probe.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
        optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], weight_decay=self.weight_decay
        )
        with progress(f"Attentive probe, {frozen.title}", epochs * per_epoch) as bar:
            for step, (tokens, labels) in enumerate(images.batches(self.batch_size, epochs, self.seed)):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * cosine(step, epochs * per_epoch, min(self.warmup_epochs, epochs / 2) * per_epoch)
                optimizer.zero_grad()
                cross_entropy(probe(tokens), labels).backward()
                optimizer.step()
                bar.advance()
        return probe.eval().requires_grad_(False)


class AttentiveHead(nn.Module):
    """From patch tokens (B, N_p, D) to scores (B, C).

    Args:
        features: D.
        heads: Of the cross-attention.
        classes: C.
    """

    def __init__(self, features: int, heads: int, classes: int) -> None:
        super().__init__()
        self.normaliser = nn.BatchNorm1d(features, affine=False)
        self.pool = AttentionPoolLatent(features, num_heads=heads, norm_layer=nn.LayerNorm)  # type: ignore[arg-type]
        self.classifier = nn.Linear(features, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, C)."""
        return self.classifier(self.pool(self.normaliser(tokens.float().flatten(0, 1)).view(tokens.shape)))


def build_probe(frozen: FrozenBackbone, seed: int) -> AttentiveHead:
    """The probe at its start, with as many heads as the backbone has."""
    backbone = frozen.backbone
    with seeded_globally(seed, "attentive probe"):
        return AttentiveHead(backbone.embed_dim, num_heads(backbone), frozen.num_classes).to(frozen.device)


class Tokens:
    """Patch tokens of images, in float16: kept where `CACHE_BYTES` allow, and computed again in every epoch otherwise.

    Args:
        frozen: The backbone.
        source: Labelled images.
        part: What to call them.
    """

    def __init__(self, frozen: FrozenBackbone, source: ImageSource, part: str) -> None:
        self._frozen, self._source = frozen, source
        self._view = FixedView(frozen.spec.image_size)
        self._describe = patch_tokens(frozen)
        tokens = self._describe(torch.zeros(1, 3, self._view.size, self._view.size, dtype=torch.uint8))
        self._cached = None
        if len(source) * tokens.numel() * tokens.element_size() <= CACHE_BYTES:
            self._cached = describe_all(frozen, source, self._view, self._describe, part)

    def __len__(self) -> int:
        return len(self._source if self._cached is None else self._cached[1])

    def batches(self, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, N_p, D) and labels (B,) in a new order in every epoch."""
        return self._load(order_of(len(self), batch_size, seed, epochs).items())

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, N_p, D) and labels (B,) of every image once."""
        return self._load(sequential_batches(len(self), _BATCH_SIZE))

    def _load(self, batches: Iterable[BatchItem]) -> Iterator[tuple[Tensor, Tensor]]:
        frozen = self._frozen
        if self._cached is not None:
            tokens, labels = self._cached
            for item in batches:
                rows = torch.tensor(item.indices, device=frozen.device)
                yield tokens[rows], labels[rows]
            return
        local_batches = shared(batches, this_process())
        for loaded in make_loader(self._source, ViewRenderer(self._view), local_batches, frozen.workers):
            tokens, labels, _ = described_in_all(frozen, self._source, loaded, self._describe)
            if len(labels):  # else nothing of the batch could be read
                yield tokens, labels
        frozen.share_records()
