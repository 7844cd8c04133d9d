"""A fine-tuning: what is loaded, how a step is taken, and when the test images are evaluated.

The test images are evaluated now and then so that a run can be watched. The result is that of the last step, whatever came before:
the best of several evaluations would be chosen on the test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from mapet.compat import ModelEmaV3
from mapet.data.augmentation import TrainingView
from mapet.data.batch import LoadedBatch
from mapet.data.order import step_batches
from mapet.engine.optimizer import adamw, layer_groups
from mapet.engine.parallel import GlobalRows
from mapet.engine.schedule import cosine
from mapet.engine.step import StepSums
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.evaluate import evaluate_models
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.finetuning.step import FineTuneStep
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.protocol import Metrics
from mapet.evaluation.supervised.training import SupervisedTraining
from mapet.models.weights import fingerprint
from mapet.runtime.progress import say
from mapet.token_store.keys import image_keys

EMA = "ema_"


class FineTuning(SupervisedTraining):
    """Trains a classifier on the subject's images.

    Args:
        frozen: The backbone, which stays as it is, and the images.
        settings: Of the fine-tuning.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.
        loop: Of `Training`: `when`, `stop`, `clock`.
    """

    remedy = "A lower lr (--set lr=...), a longer warm-up (--set warmup_epochs=...) or --set clip_norm=1 usually helps."
    step: FineTuneStep

    def __init__(self, frozen: FrozenBackbone, settings: FineTuneSettings, folder: Path, **loop: Any) -> None:
        super().__init__(frozen, folder, "training from scratch" if settings.scratch else "fine-tuning", **loop)
        self.settings, self.uses_backbone = settings, not settings.scratch
        self.model, self.spec, self.transfer = build_classifier(frozen, settings)
        self.ema = None if settings.ema is None else ModelEmaV3(self.model, decay=settings.ema)
        depth = len([*frozen.backbone.blocks.children()])
        groups = layer_groups(self.model, depth, settings.layer_decay, settings.weight_decay)
        optimizer = adamw(groups, settings.betas, settings.eps)
        self.step = FineTuneStep(self.model, optimizer, settings, self.spec, frozen.device, self.processes)
        self.batch_size = self.check_share(min(settings.batch_size, len(frozen.train)))
        self.steps_per_epoch = len(frozen.train) // self.batch_size
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch), settings.min_steps)
        self.warmup_steps = round(self.total_steps * settings.warmup_epochs / settings.epochs)
        self.evaluate_every = max(1, round(self.total_steps * settings.evaluate_every / settings.epochs))
        self.state = nn.ModuleDict({"model": self.model} if self.ema is None else {"model": self.model, "ema": self.ema.module})
        self.identity = self.agreed(self._identity())
        self.first_step = self.resume()

    @property
    def models(self) -> dict[str, nn.Module]:
        """Prefix of the metrics to the evaluated model."""
        return {"": self.model} if self.ema is None else {"": self.model, EMA: self.ema.module}

    def train_and_evaluate(self) -> Metrics:
        """Takes all steps that are left; returns the metrics of the last, those of an average of the weights named ema_*.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written if there is a folder.
        """
        say(self.transfer.line())
        self._last: Metrics | None = None
        self.run()
        if self._last is None:
            self.evaluate()
        assert self._last is not None
        return self._last

    def is_evaluated(self, done: int) -> bool:
        """Now and then, and at the end."""
        return done == self.total_steps or done % self.evaluate_every == 0

    def evaluate(self) -> dict[str, float]:
        """Accuracies on the test images, of the weights as they are now."""
        self._last = evaluate_models(self.models, self.spec, self.frozen, self.settings)
        return self._last.values

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine."""
        rates = self.settings
        return cosine(step, self.total_steps, self.warmup_steps, lr=rates.lr, min_lr=rates.min_lr, warmup_lr=rates.warmup_lr)

    def training_step(self, step: int, batch: LoadedBatch, lr: float) -> tuple[StepSums, int] | None:
        """One step of the optimizer and of the average of the weights; none where no image of the batch could be read."""
        rows = GlobalRows.of(len(batch.images), self.processes)
        if not rows.total:
            return None
        device = self.frozen.device
        images, labels = batch.images, cast(Tensor, batch.labels)
        sums = self.step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True), step, lr, rows)
        if self.ema is not None:
            self.ema.update(self.model)
        return sums, rows.total

    def batches(self) -> Iterable[LoadedBatch]:
        """The batches of every step that is left."""
        settings, frozen = self.settings, self.frozen
        view = TrainingView(
            self.spec.image_size,
            settings.rand_augment,
            settings.color_jitter,
            settings.crop_scale,
            settings.flip,
            settings.interpolation,
            self.spec.mean,
        )
        steps = step_batches(len(frozen.train), self.batch_size, settings.seed, self.first_step, self.total_steps)
        return frozen.augmented(view, steps, settings.seed)

    def _identity(self) -> str:
        """Names everything that the weights depend on: settings, initial weights, images and labels."""
        train, spec = self.frozen.train, self.frozen.spec
        keys = image_keys(train)
        self.frozen.keys["training"].record_all(keys)
        content = "".join(keys).encode() + cast(Any, train.labels).tobytes()
        facts = {
            "settings": self.settings.describe(),
            "images": hashlib.sha256(content).hexdigest(),
            "normalisation": [*spec.mean, *spec.std],
        }
        return fingerprint(self.model, facts)[:16]
