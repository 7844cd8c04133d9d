"""The loop of a fine-tuning: load, step, log, judge, checkpoint, from wherever the folder left off.

The test images are looked at now and then so that a run can be watched. The figure is that of the last step, whatever came before:
the best of several looks would be chosen on the test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import Dataset

from mapet.compat import ModelEmaV3
from mapet.data.augmentation import TrainingView
from mapet.data.loader import LoadedBatch, Samples, in_background, step_batches
from mapet.data.sources import ImageSource
from mapet.errors import CheckpointError, InterruptedRunError, NonFiniteLossError
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.judging import judge_models
from mapet.evaluation.finetuning.log import FineTuneLog
from mapet.evaluation.finetuning.optim import make_optimizer
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.finetuning.step import FineTuneStep
from mapet.evaluation.subject import Subject
from mapet.models.weights import fingerprint
from mapet.runtime.interrupt import StopRequest
from mapet.runtime.progress import progress, say
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import derive_seed
from mapet.token_store.keys import image_keys
from mapet.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from mapet.training.optim import learning_rate
from mapet.training.step import StepSums

CHECKPOINT_EVERY = 500  # steps
LOG_EVERY = 10
EMA = "ema_"


class AugmentedImages(Dataset[LoadedBatch]):
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


class FineTuning:
    """Trains a classifier on the subject's images.

    Args:
        subject: The backbone, which stays as it is, and the images.
        settings: Of the fine-tuning.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.
    """

    def __init__(self, subject: Subject, settings: FineTuneSettings, folder: Path) -> None:
        self.subject, self.settings = subject, settings
        self.run_directory, self.keeps = RunDirectory(folder), subject.folder is not None
        self.model, self.recipe, self.transfer = build_classifier(subject, settings)
        self.optimizer = make_optimizer(self.model, len([*subject.backbone.blocks.children()]), settings)
        self.ema = None if settings.ema is None else ModelEmaV3(self.model, decay=settings.ema)
        self.step = FineTuneStep(self.model, self.optimizer, settings, self.recipe, subject.device)
        self.batch_size = min(settings.batch_size, len(subject.train))
        self.steps_per_epoch = len(subject.train) // self.batch_size
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch), settings.min_steps)
        self.warmup_steps = round(self.total_steps * settings.warmup_epochs / settings.epochs)
        self.evaluate_every = max(1, round(self.total_steps * settings.evaluate_every / settings.epochs))
        self.state = nn.ModuleDict({"model": self.model} if self.ema is None else {"model": self.model, "ema": self.ema.module})
        self.hash = self._hash()
        self.first_step = self._resume()

    @property
    def models(self) -> dict[str, nn.Module]:
        """Prefix of the figures to what is judged."""
        return {"": self.model} if self.ema is None else {"": self.model, EMA: self.ema.module}

    def run(self) -> dict[str, float]:
        """Takes all steps that are left; returns the figures of the last.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written if there is a folder.
        """
        say(self.transfer.line())
        if self.batch_size < self.settings.batch_size:
            say(f"{self.batch_size} images are fewer than a batch of {self.settings.batch_size}: all of them are one batch.")
        if self.first_step == self.total_steps:
            return self.judge()
        figures: dict[str, float] = {}
        log = FineTuneLog(self.run_directory, self.first_step, self.steps_per_epoch)
        title = f"Fine-tuning, {self.subject.title}"
        self.model.train()
        with StopRequest() as stop, progress(title, self.total_steps, self.first_step) as bar:
            for step, batch in enumerate(log.timed(self._load()), self.first_step):
                rate = learning_rate(step, self.total_steps, self.warmup_steps, self.settings.schedule)
                log.add(self._take(step, batch, rate), len(batch.images))
                done, stopping = step + 1, stop.requested
                last = done == self.total_steps
                look = last or done % self.evaluate_every == 0
                save = last or stopping or done % CHECKPOINT_EVERY == 0
                write = save or look or done % LOG_EVERY == 0
                if write or self.subject.device.type == "cpu":
                    self._check_finite()
                if write:
                    log.record(done, rate, bar)
                if look:
                    figures = self.judge()
                    log.record_figures(done, figures)
                if save:
                    self._save(done)
                bar.advance()
                if stopping and not last:
                    way_out = "The same command continues from there." if self.keeps else "Nothing was kept: give --out FOLDER."
                    raise InterruptedRunError(f"Stopped after step {done} of the fine-tuning. {way_out}")
        return figures

    def judge(self) -> dict[str, float]:
        """Accuracies on the test images, of the weights as they are now."""
        return judge_models(self.models, self.recipe, self.subject, self.settings)

    def _take(self, step: int, batch: LoadedBatch, rate: float) -> StepSums:
        """One step of the optimizer and of the average of the weights."""
        self.subject.unreadable.record(batch.unreadable)
        images, labels = batch.images, cast(Tensor, batch.labels)
        device = self.subject.device
        sums = self.step(images.to(device, non_blocking=True), labels.to(device, non_blocking=True), step, rate)
        if self.ema is not None:
            self.ema.update(self.model)
        return sums

    def _load(self) -> Iterable[LoadedBatch]:
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
        return in_background(images, steps.with_epochs(), subject.workers, pin_memory=subject.device.type == "cuda")

    def _save(self, done: int) -> None:
        if self.keeps:
            save_checkpoint(self.run_directory.checkpoints, done, self.hash, self.state, self.optimizer, keep=1)

    def _resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the step to go on with."""
        checkpoint = newest_checkpoint(self.run_directory.checkpoints) if self.keeps else None
        step = 0
        if checkpoint is not None:
            if checkpoint.science_hash != self.hash:
                raise CheckpointError(
                    f"{checkpoint.path} belongs to a fine-tuning of another backbone, or on other images. Give another --out, or "
                    f"remove {self.run_directory.path}."
                )
            load_checkpoint(checkpoint, self.state, self.optimizer)
            step = checkpoint.step
            say(f"Continuing the fine-tuning from step {step} of {self.total_steps}.")
        self.run_directory.forget_metrics_after(step)
        return step

    def _hash(self) -> str:
        """Names everything that the weights depend on: settings, initial weights, images and labels."""
        train, recipe = self.subject.train, self.subject.recipe
        content = "".join(image_keys(train)).encode() + cast(Any, train.labels).tobytes()
        facts = {
            "settings": self.settings.describe(),
            "images": hashlib.sha256(content).hexdigest(),
            "normalisation": [*recipe.mean, *recipe.std],
        }
        return fingerprint(self.model, facts)[:16]

    def _check_finite(self) -> None:
        step = int(self.step.halted_at)
        if step >= 0:
            raise NonFiniteLossError(
                f"The loss or its gradient is not finite at step {step} of the fine-tuning. The optimizer did not move. A lower lr "
                "(--set lr=...), a longer warm-up (--set warmup_epochs=...) or --set clip_norm=1 usually helps."
            )
