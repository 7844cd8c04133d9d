"""One optimizer step of a pre-training: corrupt, predict, normalise over the whole batch, clip, step. There is no host sync."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mapet.config.settings import PretrainSettings, TrainingSettings
from mapet.data.batch import Batch
from mapet.data.jitter import color_jitter
from mapet.data.views import normalise
from mapet.engine.optimizer import adamw, decay_groups
from mapet.engine.parallel import DataParallel, Execution, GlobalRows, place_drop_paths, sum_over_processes
from mapet.engine.step import GuardedStep, StepSums
from mapet.objectives.base import Objective, ObjectiveOutput
from mapet.objectives.masking import narrow_corruption
from mapet.runtime.device import autocast
from mapet.runtime.processes import Processes
from mapet.runtime.seeding import seed_all_devices, seeded_generator

COMPILER = "inductor"
_LOGGED_AS = {"correct": "token_accuracy"}


def make_optimizer(objective: Objective, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW by the paper's rules, over the parameters that the objective trains.

    No weight decay on vectors, biases, position embeddings, the class token and registers. The mask token is decayed, as in MaPeT's
    release.
    """
    return adamw(decay_groups(objective, settings.weight_decay), settings.betas, settings.eps)


def execution_of(settings: PretrainSettings) -> Execution:
    """How the passes of a run are computed."""
    mechanics = settings.mechanics
    compiler = COMPILER if mechanics.compile else None
    return Execution(mechanics.parallel, settings.training.precision, mechanics.activation_checkpointing, compiler)


class TrainingStep(GuardedStep):
    """Applies optimizer steps to an objective.

    Args:
        objective: Trained in place.
        settings: Of the run.
        device: Where objective and batches are.
        processes: This process among all.

    Attributes:
        rows: Where the images of the last step were in the batch of all processes.
    """

    rows: GlobalRows

    def __init__(
        self,
        objective: Objective,
        settings: PretrainSettings,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.objective, self.settings = objective, settings
        self._processes = processes or Processes()
        unused = any(re.match(objective.unused, name) for name, value in objective.named_parameters() if value.requires_grad)
        self._parallel = DataParallel(objective, self._processes, unused, execution_of(settings))
        self._place = place_drop_paths(objective)
        super().__init__(make_optimizer(objective, settings.training), device)

    def __call__(self, images: Tensor, token_ids: Tensor | None, step: int, learning_rate: float) -> StepSums:
        """Takes step number `step` on the images (B, 3, H, W) uint8 of this process and their tokens (B, N_p), on the device.

        Returns:
            Sums over the batch of all processes.
        """
        self.rows = rows = GlobalRows.of(len(images), self._processes)
        batch = self._augment(images, token_ids, step, rows)
        sums = sum_over_processes(_add_up(self._backward(batch, step, rows)), self._processes)
        gradient_norm = self._normalise_and_clip(sums["targets"])
        self.objective.before_optimizer_step()
        finite = torch.isfinite(sums["loss"]) & torch.isfinite(gradient_norm)
        self.optimizer_step(step, learning_rate, finite, targets=sums["targets"])
        metrics = {_LOGGED_AS.get(name, name): value for name, value in sums.items() if name not in ("loss", "targets")}
        return StepSums(sums["loss"], sums["targets"], metrics, gradient_norm)

    def _augment(self, images: Tensor, token_ids: Tensor | None, step: int, rows: GlobalRows) -> Batch:
        training = self.settings.training
        scaled = images.float() / 255
        if training.color_jitter > 0:
            generator = seeded_generator(self.settings.seed, "color jitter", step, device=self.device)
            scaled = color_jitter(scaled, training.color_jitter, generator, rows.total, rows.start)
        return Batch(normalise(scaled, training.mean, training.std), token_ids)

    def _backward(self, batch: Batch, step: int, rows: GlobalRows) -> list[ObjectiveOutput]:
        """Adds up gradients over micro-batches; hiding and drop path depend neither on these parts nor on the processes."""
        corruption = narrow_corruption(self._corruption(batch, step, rows), rows.slice)
        images = max(1, rows.most)  # a batch of which nothing could be read makes one empty part; all processes make as many
        size = self.settings.mechanics.micro_batch or images
        starts = range(0, images, size)
        return [
            self._backward_part(batch, corruption, slice(start, start + size), step, rows, start == starts[-1]) for start in starts
        ]

    def _corruption(self, batch: Batch, step: int, rows: GlobalRows) -> Any:
        """What is hidden in the batch of all processes."""
        generator = seeded_generator(self.settings.seed, "corruption", step, device=self.device)
        if rows.total == rows.count:
            return self.objective.corrupt(batch, generator)
        images = batch.images[:1].new_empty(()).expand(rows.total, *batch.images.shape[1:])
        return self.objective.corrupt(Batch(images), generator)

    def _backward_part(
        self, batch: Batch, corruption: Any, part: slice, step: int, rows: GlobalRows, is_last: bool
    ) -> ObjectiveOutput:
        """Forward and backward of the images `part` of this process."""
        ids = None if batch.token_ids is None else batch.token_ids[part]
        self._place.rows = rows.part(part)
        seed_all_devices(self.settings.seed, "drop path", step)  # drop path draws from torch's global generators
        with self._parallel.accumulating(is_last):
            with autocast(self.device, self.settings.training.precision):
                output = self._parallel(Batch(batch.images[part], ids), narrow_corruption(corruption, part))
            output.loss_sum.backward()
        return output

    def _normalise_and_clip(self, num_targets: Tensor) -> Tensor:
        """Turns gradients of the summed loss into those of the mean over all targets; returns their norm before clipping."""
        count = self._parallel.divisor(num_targets)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(count)
        return self.clip(self.settings.training.clip_norm)


def _add_up(outputs: list[ObjectiveOutput]) -> dict[str, Tensor]:
    """Loss, targets and metrics summed over micro-batches."""
    each = [{"loss": out.loss_sum.detach(), "targets": out.num_targets, **out.metrics} for out in outputs]
    return {name: torch.stack([sums[name] for sums in each]).sum(dim=0) for name in each[0]}
