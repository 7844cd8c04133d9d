"""Training of a segmentation: what is loaded and how a step is taken."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from mapet.data.batch import LoadedBatch
from mapet.data.loader import make_loader
from mapet.data.masked import MaskedImages
from mapet.data.order import StepBatches, shared, step_batches
from mapet.engine.optimizer import adamw, layer_groups
from mapet.engine.parallel import GlobalRows
from mapet.engine.schedule import linear
from mapet.engine.step import StepSums
from mapet.errors import DataError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.segmentation.augment import Augmentation, MaskedRenderer
from mapet.evaluation.segmentation.model import UperNet, at_crop_size, blocks_of_depth, check_blocks
from mapet.evaluation.segmentation.settings import SegmentSettings
from mapet.evaluation.segmentation.step import SegmentationStep
from mapet.evaluation.supervised.training import SupervisedTraining
from mapet.models.backbone import blocks_of
from mapet.models.positions import with_own_tables
from mapet.models.weights import fingerprint
from mapet.runtime.processes import any_process
from mapet.runtime.seeding import seeded_globally


class SegmentationTraining(SupervisedTraining):
    """Trains UperNet on the subject's images, starting from a copy of its backbone.

    Args:
        frozen: The backbone, which stays as it is, and the images.
        images: The images to train on.
        settings: Of the training.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.
        loop: Of `Training`: `when`, `stop`, `clock`.

    Raises:
        CheckpointError: The folder holds another training.
        SettingsError: The backbone does not fit the settings.
        DataError: There are too few images.
    """

    remedy = "A lower lr (--set lr=...), a longer warm-up (--set warmup_steps=...) or --set precision=fp32 usually helps."
    model: UperNet
    step: SegmentationStep

    def __init__(self, frozen: FrozenBackbone, images: MaskedImages, settings: SegmentSettings, folder: Path, **loop: Any) -> None:
        super().__init__(frozen, folder, "segmentation", **loop)
        self.images, self.settings = images, settings
        self.batch_size = min(settings.batch_size, len(images))
        if self.batch_size < 2:
            raise DataError(f"{images.location} has {len(images)} image to train on; at least two are needed, for batch norm.")
        self.check_share(self.batch_size)
        self.total_steps, self.steps_per_epoch = settings.steps, self._step_batches(0, 0).steps_per_epoch
        self.identity = self.agreed(self._identity())
        self.model = self.state = build_model(frozen, settings, len(images.class_names))
        depth = len([*blocks_of(frozen.backbone)])
        groups = layer_groups(self.model, depth, settings.layer_decay, settings.weight_decay)
        self.step = SegmentationStep(self.model, adamw(groups, (0.9, 0.999)), settings, frozen.spec, frozen.device, self.processes)
        self.first_step = self.resume()

    def trained_model(self) -> UperNet:
        """Takes all steps that are left; returns the model in evaluation mode.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written if there is a folder.
        """
        self.run()
        return self.model.eval()

    def learning_rate(self, step: int) -> float:
        """Warm-up and a straight line to 0."""
        return linear(step, self.total_steps, self.settings.warmup_steps, self.settings.lr)

    def training_step(self, step: int, batch: LoadedBatch, lr: float) -> tuple[StepSums, int] | None:
        """Batch norm needs two images, and the loss a pixel with a class; nothing can be learned from other batches."""
        masks = cast(Tensor, batch.labels)
        rows = GlobalRows.of(len(batch.images), self.processes)
        if not any_process(bool((masks >= 0).any())) or rows.total < 2:
            return None
        device = self.frozen.device
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.images, masks))
        return self.step(images, labels, step, lr, rows), rows.total

    def batches(self) -> Iterable[LoadedBatch]:
        """The crops of every step that is left."""
        settings, frozen = self.settings, self.frozen
        augment = Augmentation(settings.crop, settings.scale, settings.ratio, settings.max_class_share)
        steps = self._step_batches(self.first_step, settings.steps)
        renderer = MaskedRenderer(self.images, augment, settings.seed)
        return make_loader(self.images, renderer, shared(steps.items(), self.processes), frozen.workers, frozen.device)

    def _step_batches(self, first: int, last: int) -> StepBatches:
        return step_batches(len(self.images), self.batch_size, self.settings.seed, first, last)

    def _identity(self) -> str:
        """Names everything that the weights depend on: settings, the backbone's weights, images and masks."""
        normalisation = [*self.frozen.spec.mean, *self.frozen.spec.std]
        facts = {"settings": self.settings.describe(), "images": self.images.digest, "normalisation": normalisation}
        if with_own_tables(self.frozen.backbone, self.frozen.spec)[0] is not self.frozen.backbone:
            facts["tables"] = "own"
        return fingerprint(self.frozen.backbone, json.loads(json.dumps(facts)))[:16]


def build_model(frozen: FrozenBackbone, settings: SegmentSettings, num_classes: int) -> UperNet:
    """UperNet on a copy of the subject's backbone, resized to the crop, on its device; new weights are a function of the seed."""
    depth = len([*blocks_of(frozen.backbone)])
    blocks = check_blocks(settings.blocks, depth) if settings.blocks is not None else blocks_of_depth(depth)
    backbone, _ = with_own_tables(frozen.backbone, frozen.spec)
    backbone = at_crop_size(backbone, settings.crop, settings.drop_path)
    channels = settings.channels or backbone.embed_dim
    with seeded_globally(settings.seed, "segmentation heads"):
        model = UperNet(backbone, num_classes, blocks, channels, settings.aux_channels, settings.dropout)
    return model.to(frozen.device)
