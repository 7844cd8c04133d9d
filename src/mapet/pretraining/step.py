"""One optimizer step of a pre-training: corrupt, predict, normalise over the whole batch, clip, step. There is no host sync."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mapet.config.settings import PretrainSettings, TrainingSettings
from mapet.data.batch import Batch
from mapet.data.jitter import color_jitter
from mapet.data.views import normalise
from mapet.engine.optimizer import adamw, decay_groups
from mapet.engine.step import GuardedStep, StepSums
from mapet.objectives.base import Objective, ObjectiveOutput
from mapet.objectives.masking import narrow_corruption
from mapet.runtime.device import autocast
from mapet.runtime.seeding import derive_seed, seeded_generator

_LOGGED_AS = {"correct": "token_accuracy"}


def make_optimizer(objective: Objective, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW by the paper's rules, over the parameters that the objective trains.

    No weight decay on vectors, biases, position embeddings, the class token and registers. The mask token is decayed, as in MaPeT's
    release.
    """
    return adamw(decay_groups(objective, settings.weight_decay), settings.betas, settings.eps)


class TrainingStep(GuardedStep):
    """Applies optimizer steps to an objective.

    Args:
        objective: Trained in place.
        optimizer: A fused optimizer.
        settings: Of the run.
        device: Where objective and batches are.
    """

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, settings: PretrainSettings, device: torch.device
    ) -> None:
        super().__init__(optimizer, device)
        self.objective, self.settings = objective, settings

    def __call__(self, images: Tensor, token_ids: Tensor | None, step: int, learning_rate: float) -> StepSums:
        """Takes step number `step` on images (B, 3, H, W) uint8 and their tokens (B, N_p), both on the device."""
        self._seed_drop_path(step)
        batch = self._augment(images, token_ids, step)
        outputs = [self._backward(micro, corruption) for micro, corruption in self._micro_batches(batch, step)]
        sums = _add_up(outputs)
        gradient_norm = self._normalise_and_clip(sums["targets"])
        self.objective.before_optimizer_step()
        finite = torch.isfinite(sums["loss"]) & torch.isfinite(gradient_norm)
        self.optimizer_step(step, learning_rate, finite, targets=sums["targets"])
        metrics = {_LOGGED_AS.get(name, name): value for name, value in sums.items() if name not in ("loss", "targets")}
        return StepSums(sums["loss"], sums["targets"], metrics, gradient_norm)

    def _seed_drop_path(self, step: int) -> None:
        """Drop path draws from torch's global generators, which this makes a function of the step."""
        torch.manual_seed(derive_seed(self.settings.seed, "drop path", step))

    def _augment(self, images: Tensor, token_ids: Tensor | None, step: int) -> Batch:
        training = self.settings.training
        scaled = images.float() / 255
        if training.color_jitter > 0:
            generator = seeded_generator(self.settings.seed, "color jitter", step, device=self.device)
            scaled = color_jitter(scaled, training.color_jitter, generator)
        return Batch(normalise(scaled, training.mean, training.std), token_ids)

    def _micro_batches(self, batch: Batch, step: int) -> Iterator[tuple[Batch, Any]]:
        """The batch in parts; what is hidden is drawn for the whole, so that it does not depend on the parts."""
        generator = seeded_generator(self.settings.seed, "corruption", step, device=self.device)
        corruption = self.objective.corrupt(batch, generator)
        images = max(1, len(batch.images))  # a batch of which nothing could be read makes one empty part
        size = self.settings.mechanics.micro_batch or images
        for start in range(0, images, size):
            part = slice(start, start + size)
            ids = None if batch.token_ids is None else batch.token_ids[part]
            yield Batch(batch.images[part], ids), narrow_corruption(corruption, part)

    def _backward(self, batch: Batch, corruption: Any) -> ObjectiveOutput:
        with autocast(self.device, self.settings.training.precision):
            output = self.objective(batch, corruption)
        output.loss_sum.backward()
        return output

    def _normalise_and_clip(self, num_targets: Tensor) -> Tensor:
        """Turns gradients of the summed loss into those of the mean over all targets; returns their norm before clipping."""
        count = num_targets.clamp(min=1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(count)
        return self.clip(self.settings.training.clip_norm)


def _add_up(outputs: list[ObjectiveOutput]) -> dict[str, Tensor]:
    """Loss, targets and metrics summed over micro-batches."""
    each = [{"loss": out.loss_sum.detach(), "targets": out.num_targets, **out.metrics} for out in outputs]
    return {name: torch.stack([sums[name] for sums in each]).sum(dim=0) for name in each[0]}
