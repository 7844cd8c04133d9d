"""A fine-tuning: what is loaded, how a step is taken, and when the test images are looked at.

The test images are looked at now and then so that a run can be watched. The figure is that of the last step, whatever came before:
the best of several looks would be chosen on the test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mapet.compat import ModelEmaV3
from mapet.data.augmentation import TrainingView
from mapet.data.background import BackgroundBatches, BatchMaker
from mapet.data.loader import LoadedBatch, Samples, bytes_of, step_batches
from mapet.data.sources import ImageSource
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.judging import judge_models
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.finetuning.step import FineTuneStep
from mapet.evaluation.protocol import Findings
from mapet.evaluation.subject import Subject
from mapet.evaluation.supervised.optim import parameter_groups
from mapet.evaluation.supervised.training import SupervisedTraining
from mapet.models.weights import fingerprint
from mapet.runtime.progress import say
from mapet.runtime.seeding import derive_seed
from mapet.token_store.keys import image_keys
from mapet.training.optim import learning_rate
from mapet.training.step import StepSums

EMA = "ema_"


class AugmentedImages(BatchMaker[LoadedBatch]):
    """Decodes and views whole batches: item (epoch, [i, j, ...]) is a `LoadedBatch`, a function of seed, epoch and sample keys.

    One loader serves all epochs, so that its workers are not started anew in each.
    """

    def __init__(self, source: ImageSource, view: TrainingView, seed: int) -> None:
        self._source, self._view, self._seed = source, view, seed

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> LoadedBatch:
        epoch, indices = item
        samples = Samples(self._source, indices)
        images = [self._view(image, derive_seed(self._seed, "view", epoch, key)) for image, key in samples]
        return samples.batch(images, self._view.size)

    def pixels(self, item: tuple[int, Sequence[int]]) -> int:
        """Bytes of a batch."""
        return len(item[1]) * bytes_of(self._view.size)


class FineTuning(SupervisedTraining):
    """Trains a classifier on the subject's images.

    Args:
        subject: The backbone, which stays as it is, and the images.
        settings: Of the fine-tuning.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.
    """

    remedy = "A lower lr (--set lr=...), a longer warm-up (--set warmup_epochs=...) or --set clip_norm=1 usually helps."
    step: FineTuneStep

    def __init__(self, subject: Subject, settings: FineTuneSettings, folder: Path) -> None:
        super().__init__(subject, folder)
        self.settings = settings
        self.called, self.uses_backbone = "training from scratch" if settings.scratch else "fine-tuning", not settings.scratch
        self.model, self.recipe, self.transfer = build_classifier(subject, settings)
        self.ema = None if settings.ema is None else ModelEmaV3(self.model, decay=settings.ema)
        depth = len([*subject.backbone.blocks.children()])
        self.step = FineTuneStep(self.model, make_optimizer(self.model, depth, settings), settings, self.recipe, subject.device)
        self.batch_size = min(settings.batch_size, len(subject.train))
        self.steps_per_epoch = len(subject.train) // self.batch_size
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch), settings.min_steps)
        self.warmup_steps = round(self.total_steps * settings.warmup_epochs / settings.epochs)
        self.evaluate_every = max(1, round(self.total_steps * settings.evaluate_every / settings.epochs))
        self.state = nn.ModuleDict({"model": self.model} if self.ema is None else {"model": self.model, "ema": self.ema.module})
        self.hash = self._hash()
        self.first_step = self.resume()

    @property
    def models(self) -> dict[str, nn.Module]:
        """Prefix of the figures to what is judged."""
        return {"": self.model} if self.ema is None else {"": self.model, EMA: self.ema.module}

    def run(self) -> Findings:
        """Takes all steps that are left; returns the figures of the last, those of an average of the weights named ema_*.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written if there is a folder.
        """
        say(self.transfer.line())
        self.found: Findings | None = None
        if self.first_step < self.total_steps:
            self.train()
        if self.found is None:
            self.look()
        assert self.found is not None
        return self.found

    def is_look(self, done: int) -> bool:
        """Now and then, and at the end."""
        return done == self.total_steps or done % self.evaluate_every == 0

    def look(self) -> dict[str, float]:
        """Accuracies on the test images, of the weights as they are now."""
        self.found = judge_models(self.models, self.recipe, self.subject, self.settings)
        return self.found.figures

    def rate(self, step: int) -> float:
        """Warm-up and cosine."""
        return learning_rate(step, self.total_steps, self.warmup_steps, self.settings.schedule)

    def take(self, step: int, batch: LoadedBatch, rate: float) -> StepSums | None:
        """One step of the optimizer and of the average of the weights; none where no image of the batch could be read."""
        if not len(batch.images):
            return None
        device = self.subject.device
        images, labels = batch.images, cast(Tensor, batch.labels)
        sums = self.step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True), step, rate)
        if self.ema is not None:
            self.ema.update(self.model)
        return sums

    def load(self) -> Iterable[LoadedBatch]:
        """The batches of every step that is left."""
        settings, subject = self.settings, self.subject
        view = TrainingView(
            self.recipe.image_size,
            settings.rand_augment,
            settings.color_jitter,
            settings.crop_scale,
            settings.flip,
            settings.interpolation,
            self.recipe.mean,
        )
        steps = step_batches(len(subject.train), self.batch_size, settings.seed, self.first_step, self.total_steps)
        images = AugmentedImages(subject.train, view, settings.seed)
        return BackgroundBatches(images, steps.with_epochs(), subject.workers, pin_memory=subject.device.type == "cuda")

    def _hash(self) -> str:
        """Names everything that the weights depend on: settings, initial weights, images and labels."""
        train, recipe = self.subject.train, self.subject.recipe
        keys = image_keys(train)
        self.subject.keys["training"].record_all(keys)
        content = "".join(keys).encode() + cast(Any, train.labels).tobytes()
        facts = {
            "settings": self.settings.describe(),
            "images": hashlib.sha256(content).hexdigest(),
            "normalisation": [*recipe.mean, *recipe.std],
        }
        return fingerprint(self.model, facts)[:16]


def make_optimizer(model: nn.Module, depth: int, settings: FineTuneSettings) -> torch.optim.AdamW:
    """Fused AdamW, which skips its step where `found_inf` is set."""
    groups = parameter_groups(model, depth, settings.layer_decay, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
