"""Token classification (MaPeT, Table 7): how much of an image's class its visual tokens keep, when they are all that is seen.

The subject is a tokenizer, not a backbone. Images are tokenised once, in the fixed view, so that there is no
augmentation; a head is trained on the tokens of the training images and tested once, at its end, on those of the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.data.order import step_batches
from mapet.data.source import ImageSource
from mapet.engine.optimizer import decay_groups
from mapet.engine.schedule import cosine
from mapet.errors import NonFiniteLossError, SettingsError, nearest
from mapet.evaluation.outcomes import classified
from mapet.evaluation.protocol import METRICS, Metrics, Protocol, Result
from mapet.evaluation.supervised.length import describe_extended_schedule
from mapet.evaluation.tokens.data import LabelledTokens, TokenMaker, TokenSplit
from mapet.evaluation.tokens.heads import HEADS, TokenMLP, count_parameters, init_head, is_finite, token_vit
from mapet.runtime.device import autocast
from mapet.runtime.progress import progress
from mapet.runtime.seeding import seed_all_devices, seeded_globally

_CHUNK = 1024
_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Protocol):
    """Settings of the head and of its training; the paper states the architectures, not how they are trained.

    Args:
        head: "mlp" or "vit".
        width: Of the embedding and the hidden layer (192), or of the ViT.
        depth: Blocks of the ViT.
        heads: Of its attention.
        drop_path: Of the ViT.
        epochs: Passes over the training images.
        min_steps: At least so many steps, in more epochs where there are few images.
        batch_size: Images a step; all of them where there are fewer.
        lr: After the warm-up; a cosine takes it to `min_lr`.
        min_lr: At the end.
        warmup_epochs: From 1e-6 to `lr`, linearly.
        weight_decay: Of AdamW; not on vectors, position embeddings and the class token.
        label_smoothing: Share of the target spread over all classes.
        precision: "fp32" or "bf16".
        seed: Of the start, the order and drop path.
    """

    name: ClassVar[str] = "tokens"
    pools: ClassVar[bool] = False
    with_random: ClassVar[bool] = False
    takes: ClassVar[type] = TokenMaker
    takes_a: ClassVar[str] = "tokenizer"

    head: str = "mlp"
    width: int = 192
    depth: int = 12
    heads: int = 3
    drop_path: float = 0.0
    epochs: float = 50
    min_steps: int = 1000
    batch_size: int = 1024
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_epochs: float = 0
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, allowed, what in ((self.head, HEADS, "head"), (self.precision, _PRECISIONS, "precision")):
            if value not in allowed:
                raise SettingsError(f"There is no {what} '{value}' for tokens. {nearest(value, allowed)}")
        if self.batch_size < 1 or self.epochs <= 0 or self.lr <= 0:
            raise SettingsError(
                f"batch_size = {self.batch_size}, epochs = {self.epochs}, lr = {self.lr}: allowed are 1 or more, and above 0."
            )

    def prepare(self, target: TokenMaker, title: str, train: ImageSource, test: ImageSource, **work: Any) -> LabelledTokens:
        """The tokens of both parts."""
        splits = target.split(train, "training", **work), target.split(test, "test", **work)
        return LabelledTokens(target.title, *splits, target.facts, self.count_classes(train, test), work["device"])

    def evaluate(self, frozen: LabelledTokens) -> Metrics:
        """Trains a head on the tokens of the training images and tests it on those of the test images.

        Raises:
            NonFiniteLossError: The loss became infinite or NaN.
        """
        train, test, facts = frozen.train, frozen.test, frozen.facts
        model = self.build(facts["vocab_size"], facts["grid_size"], frozen.num_classes).to(frozen.device)
        loss = _train(self, model, train, frozen.device)
        scores = _scores(self, model, test, frozen.device)
        commonest = int(torch.bincount(train.labels).argmax())
        details = {
            "frequent_class": float((test.labels == commonest).double().mean()),
            "parameters": count_parameters(model),
            "training_loss": loss,
        }
        return Metrics.of(classified(scores, test.labels), {**details, **facts})

    def line(self, result: Result) -> str:
        """All figures, against the most frequent class."""
        figures = "   ".join(f"{METRICS[name]} {100 * value:.1f} %" for name, value in result.figures.items())
        floor = f"most frequent class {100 * result.details['frequent_class']:.1f} %"
        title = f"tokens:{result.preset}" if result.preset else f"tokens ({result.protocol['head']})"
        return f"{title:16} {figures}   {floor}   protocol {result.protocol_hash}   {result.seconds:.0f} s"

    def heading(self, result: Result) -> str:
        """How many tokens of how many codes there are."""
        rows, columns = result.details["grid_size"]
        return f"{result.backbone}: {result.details['vocab_size']:,} codes, {rows} x {columns} tokens an image"

    def build(self, vocab_size: int, grid_size: tuple[int, int], num_classes: int) -> nn.Module:
        """The head at its start, a function of `seed`; takes token ids (B, N_p) int64."""
        with seeded_globally(self.seed, "token head"):
            if self.head == "mlp":
                model: nn.Module = TokenMLP(vocab_size, self.width, num_classes)
            else:
                shape = {"width": self.width, "depth": self.depth, "heads": self.heads}
                model = token_vit(vocab_size, grid_size, num_classes, drop_path=self.drop_path, **shape)
            init_head(model)
        return model

    def note(self, train_images: int) -> str:
        """A line if the training has more epochs because there are few images."""
        return describe_extended_schedule(train_images, self.batch_size, self.epochs, self.min_steps, self.warmup_epochs)

    def steps(self, images: int) -> tuple[int, int]:
        """All steps, and those of the warm-up, for so many training images."""
        per_epoch = images // min(self.batch_size, images)
        steps = max(round(self.epochs * per_epoch), self.min_steps, 1)
        return steps, min(round(self.warmup_epochs * per_epoch), steps)


def _train(protocol: TokenClassification, model: nn.Module, train: TokenSplit, device: torch.device) -> float:
    """Trains in place; the mean loss of the last hundred steps."""
    steps, warmup = protocol.steps(len(train.labels))
    rates = {"lr": protocol.lr, "min_lr": protocol.min_lr, "warmup_lr": 1e-6}
    groups = decay_groups(model, protocol.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=protocol.lr)
    losses: list[Tensor] = []
    accelerators = [device] if device.type == "cuda" else []
    with progress(f"Training {protocol.title} on tokens", steps) as bar, torch.random.fork_rng(devices=accelerators):
        for step, (ids, labels) in enumerate(_batches(protocol, train, steps, device)):
            seed_all_devices(protocol.seed, "drop path", step)
            for group in optimizer.param_groups:
                group["lr"] = cosine(step, steps, warmup, **rates)
            optimizer.zero_grad()
            with autocast(device, protocol.precision):
                loss = cross_entropy(model(ids).float(), labels, label_smoothing=protocol.label_smoothing)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == 100 or step + 1 == steps:
                mean = _checked_mean(losses, step, protocol)
                bar.note(f"loss {mean:.3f}")
                losses.clear()
            bar.advance()
    model.eval().requires_grad_(False)
    return mean


def _batches(protocol: TokenClassification, train: TokenSplit, steps: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids (B, N_p) int64 and labels (B,) of every step; what there is lies on the device."""
    images = len(train.labels)
    ids, labels = train.ids.to(device), train.labels.to(device)
    for indices in step_batches(images, min(protocol.batch_size, images), protocol.seed, 0, steps):
        index = torch.tensor(indices, device=device)
        yield ids[index].long(), labels[index]


def _checked_mean(losses: list[Tensor], step: int, protocol: TokenClassification) -> float:
    if not is_finite(losses):
        raise NonFiniteLossError(
            f"The loss of {protocol.title} became NaN or infinite within the {len(losses)} steps up to step {step + 1}. Lower the "
            f"learning rate (--set lr={protocol.lr / 3:.1g})."
        )
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def _scores(protocol: TokenClassification, model: Callable[[Tensor], Tensor], test: TokenSplit, device: torch.device) -> Tensor:
    """(m, C) float32."""
    with autocast(device, protocol.precision):
        return torch.cat([model(ids.to(device).long()).float() for ids in test.ids.split(_CHUNK)])
