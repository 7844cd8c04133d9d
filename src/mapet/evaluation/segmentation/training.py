"""The loop of a segmentation: load, step, log, checkpoint, from wherever its folder left off."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from mapet.data.loader import LoadedBatch, StepBatches, step_batches
from mapet.errors import CheckpointError, DataError, InterruptedRunError, NonFiniteLossError
from mapet.evaluation.segmentation.augment import Augmentation
from mapet.evaluation.segmentation.data import MaskedImages
from mapet.evaluation.segmentation.loader import labels_of, load_pairs
from mapet.evaluation.segmentation.log import SegmentationLog
from mapet.evaluation.segmentation.model import UperNet, at_crop_size, blocks_of_depth, check_blocks
from mapet.evaluation.segmentation.optim import learning_rate, make_optimizer
from mapet.evaluation.segmentation.settings import SegmentSettings
from mapet.evaluation.segmentation.step import SegmentationStep
from mapet.evaluation.subject import Subject
from mapet.models.backbone import blocks_of
from mapet.models.weights import fingerprint
from mapet.runtime.interrupt import StopRequest
from mapet.runtime.progress import progress, say
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_globally
from mapet.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint

LOG_EVERY = 10  # steps
CHECKPOINT_SECONDS = 300.0


class SegmentationTraining:
    """Trains UperNet on the subject's images, starting from a copy of its backbone.

    Args:
        subject: The backbone, which stays as it is, and the images.
        train: The images to train on.
        settings: Of the training.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.

    Raises:
        CheckpointError: The folder holds another training.
        SettingsError: The backbone does not fit the settings.
        DataError: There are too few images.
    """

    def __init__(self, subject: Subject, train: MaskedImages, settings: SegmentSettings, folder: Path) -> None:
        self.subject, self.train, self.settings = subject, train, settings
        self.run_directory, self.keeps = RunDirectory(folder), subject.folder is not None
        self.batch_size = min(settings.batch_size, len(train))
        if self.batch_size < 2:
            raise DataError(f"{train.location} has {len(train)} image to train on; at least two are needed, for batch norm.")
        depth = len([*blocks_of(subject.backbone)])
        self.hash = self._hash()
        self.model = build_model(subject, settings, len(train.class_names))
        self.optimizer = make_optimizer(self.model, depth, settings.layer_decay, settings.weight_decay)
        self.step = SegmentationStep(self.model, self.optimizer, settings, subject.recipe, subject.device)
        self.first_step = self._resume()
        self._recent: deque[tuple[int, list[str]]] = deque(maxlen=LOG_EVERY)

    def run(self) -> UperNet:
        """Takes all steps that are left; returns the model in evaluation mode.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written if there is a folder.
        """
        steps, saved = self.settings.steps, time.monotonic()
        log = SegmentationLog(self.run_directory, self.first_step, self._batches(0, 0).steps_per_epoch)
        self.model.train()
        with StopRequest() as stop, progress(f"Segmentation, {self.subject.title}", steps, self.first_step) as bar:
            for step, batch in enumerate(log.timed(self._load()), self.first_step):
                rate = learning_rate(step, steps, self.settings.warmup_steps, self.settings.lr)
                self._take(step, batch, rate, log)
                done, stopping = step + 1, stop.requested
                save = done == steps or stopping or time.monotonic() - saved >= CHECKPOINT_SECONDS
                write = save or done % LOG_EVERY == 0
                if write or self.subject.device.type == "cpu":
                    self._check_finite()
                if write:
                    log.record(done, rate, bar)
                if save:
                    self._save(done)
                    saved = time.monotonic()
                bar.advance()
                if stopping and done < steps:
                    way_out = "The same command continues from there." if self.keeps else "Nothing was kept: give --out FOLDER."
                    raise InterruptedRunError(f"Stopped after step {done} of the segmentation. {way_out}")
        return self.model.eval()

    def _take(self, step: int, batch: LoadedBatch, rate: float, log: SegmentationLog) -> None:
        device = self.subject.device
        self.subject.unreadable.record(batch.unreadable)
        self._recent.append((step, batch.keys))
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.images, labels_of(batch)))
        if len(images) > 1:  # batch norm needs two; a batch of which nearly nothing could be read teaches nothing
            log.add(self.step(images, labels, step, rate), len(images))

    def _load(self) -> Iterable[LoadedBatch]:
        """The crops of every step that is left."""
        settings, subject = self.settings, self.subject
        augment = Augmentation(settings.crop, settings.scale, settings.ratio, settings.max_class_share)
        batches = self._batches(self.first_step, settings.steps)
        return load_pairs(self.train, augment, batches, settings.seed, subject.workers, subject.device.type == "cuda")

    def _batches(self, first: int, last: int) -> StepBatches:
        return step_batches(len(self.train), self.batch_size, self.settings.seed, first, last)

    def _save(self, done: int) -> None:
        if self.keeps:
            save_checkpoint(self.run_directory.checkpoints, done, self.hash, self.model, self.optimizer, keep=1)

    def _resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the step to go on with."""
        checkpoint = newest_checkpoint(self.run_directory.checkpoints) if self.keeps else None
        step = 0
        if checkpoint is not None:
            if checkpoint.science_hash != self.hash:
                raise CheckpointError(
                    f"{checkpoint.path} belongs to a segmentation with another backbone, other images or masks, or other settings. "
                    f"Give another --out, or remove {self.run_directory.path}."
                )
            load_checkpoint(checkpoint, self.model, self.optimizer)
            step = checkpoint.step
            say(f"Continuing the segmentation from step {step} of {self.settings.steps}.")
        self.run_directory.path.mkdir(parents=True, exist_ok=True)
        self.run_directory.forget_metrics_after(step)
        return step

    def _hash(self) -> str:
        """Names everything that the weights depend on: settings, the backbone's weights, images and masks."""
        normalisation = [*self.subject.recipe.mean, *self.subject.recipe.std]
        facts = {"settings": self.settings.describe(), "images": self.train.digest, "normalisation": normalisation}
        return fingerprint(self.subject.backbone, json.loads(json.dumps(facts)))[:16]

    def _check_finite(self) -> None:
        step = int(self.step.halted_at)
        if step >= 0:
            keys = dict(self._recent).get(step, [])
            raise NonFiniteLossError(
                f"The loss or its gradient is not finite at step {step} of the segmentation. The optimizer did not move. Sample "
                f"keys of that batch: {', '.join(keys[:4])} ... A lower lr (--set lr=...), a longer warm-up (--set "
                "warmup_steps=...) or --set precision=fp32 usually helps."
            )


def build_model(subject: Subject, settings: SegmentSettings, num_classes: int) -> UperNet:
    """UperNet on a copy of the subject's backbone, resized to the crop, on its device; new weights are a function of the seed."""
    depth = len([*blocks_of(subject.backbone)])
    blocks = check_blocks(settings.blocks, depth) if settings.blocks is not None else blocks_of_depth(depth)
    backbone = at_crop_size(subject.backbone, settings.crop, settings.drop_path)
    channels = settings.channels or backbone.embed_dim
    with seeded_globally(settings.seed, "segmentation heads"):
        model = UperNet(backbone, num_classes, blocks, channels, settings.aux_channels, settings.dropout)
    return model.to(subject.device)
