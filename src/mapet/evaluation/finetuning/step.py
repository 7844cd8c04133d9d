"""One optimizer step of a fine-tuning: normalise, erase, mix, predict, clip, step. There is no host sync."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.engine.parallel import DataParallel, GlobalRows, place_drop_paths, sum_over_processes
from mapet.engine.step import GuardedStep, StepSums
from mapet.evaluation.finetuning.inputs import TrainingInputs
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.models.spec import BackboneSpec
from mapet.runtime.device import autocast
from mapet.runtime.processes import Processes
from mapet.runtime.seeding import seed_all_devices


class FineTuneStep(GuardedStep):
    """Applies optimizer steps to a classifier.

    Mixing, erasing and drop path are functions of (seed, step) and of an image's place in the batch of all processes.

    Args:
        model: Trained in place, in training mode.
        optimizer: Fused; its groups have an `lr_scale`.
        settings: Of the fine-tuning.
        spec: Of the model: its normalisation and number of classes.
        device: Where model and batches are.
        processes: This process among all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: FineTuneSettings,
        spec: BackboneSpec,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(optimizer, device)
        self.model, self.settings, self.spec = model, settings, spec
        self._processes = processes or Processes()
        self._inputs = TrainingInputs(settings, spec, device)
        self._parallel = DataParallel(model, self._processes)
        self._place = place_drop_paths(model)

    def __call__(self, images: Tensor, labels: Tensor, step: int, learning_rate: float, rows: GlobalRows | None = None) -> StepSums:
        """Takes step number `step`.

        Args:
            images: (B, 3, H, W) uint8 of this process, on the device; at least one in all processes. Of an odd number the last is
                left out where images are mixed in pairs; a single one is not mixed.
            labels: (B,) int64.
            step: From 0.
            learning_rate: Of the layers behind the blocks.
            rows: Where the images are in the batch of all processes; exchanged where it is not given.
        """
        seed_all_devices(self.settings.seed, "drop path", step)  # every device; a GPU's noise too
        rows = rows or GlobalRows.of(len(images), self._processes)
        inputs, targets, rows = self._inputs(images, labels, step, rows)
        sums = sum_over_processes({"loss": self._backward(inputs, targets, rows)}, self._processes)
        loss, norm = sums["loss"], self.clip(self.settings.clip_norm)
        self.optimizer_step(step, learning_rate, finite=torch.isfinite(loss) & torch.isfinite(norm))
        return StepSums(loss, torch.full_like(loss, rows.total), {}, norm)

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What a whole batch is made of; see `TrainingInputs`."""
        return self._inputs(images, labels, step, GlobalRows.of(len(images), Processes()))[:2]

    def _backward(self, inputs: Tensor, targets: Tensor, rows: GlobalRows) -> Tensor:
        """Gradients of the mean cross-entropy over all processes; returns the sum over the images of this one.

        Drop path draws the same numbers for every part, and each takes its rows.
        """
        images = max(1, len(inputs))  # where nothing could be read, one empty part
        size = self.settings.micro_batch or images
        starts = range(0, images, size)
        divisor = self._parallel.divisor(torch.tensor(float(rows.total), device=self.device))
        devices = [self.device] if self.device.type == "cuda" else []
        losses = []
        for start in starts:
            part = slice(start, start + size)
            self._place.rows = rows.part(part)
            with self._parallel.accumulating(start == starts[-1]), torch.random.fork_rng(devices):
                with autocast(self.device, self.settings.precision):
                    logits = self._parallel(inputs[part])
                loss = cross_entropy(logits.float(), targets[part], reduction="sum")
                (loss / divisor).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()
