"""One optimizer step of a segmentation: normalise, predict, step. There is no host sync."""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.data.mask_files import PADDED
from mapet.data.views import normalise
from mapet.engine.parallel import DataParallel, GlobalRows, sum_over_processes
from mapet.engine.step import GuardedStep, StepSums
from mapet.engine.whole_batch import place_whole_batch
from mapet.evaluation.segmentation.loss import at_size, pixel_count, pixel_loss_sum
from mapet.evaluation.segmentation.model import UperNet
from mapet.evaluation.segmentation.settings import SegmentSettings
from mapet.models.spec import BackboneSpec
from mapet.runtime.device import autocast
from mapet.runtime.processes import Processes
from mapet.runtime.seeding import seed_all_devices


class SegmentationStep(GuardedStep):
    """Applies optimizer steps to a model.

    Args:
        model: Trained in place.
        optimizer: Fused; its groups have an `lr_scale`.
        settings: Of the training.
        spec: For the normalisation.
        device: Where model and batches are.
        processes: This process among all.
    """

    def __init__(
        self,
        model: UperNet,
        optimizer: torch.optim.Optimizer,
        settings: SegmentSettings,
        spec: BackboneSpec,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(optimizer, device)
        self.model, self.settings, self.spec = model, settings, spec
        self._processes = processes or Processes()
        self._place = place_whole_batch(model, self._processes)
        # the backbone's last norm, and blocks above the last that is used, take no part in the loss
        self._parallel = DataParallel(model, self._processes, unused=True)

    def __call__(self, images: Tensor, labels: Tensor, step: int, learning_rate: float, rows: GlobalRows | None = None) -> StepSums:
        """Takes step number `step`.

        Args:
            images: (B, 3, H, W) uint8 of this process, on the device.
            labels: (B, H, W) int16; negative where there is no class.
            step: From 0; drop path and dropout are functions of it and of an image's place in the batch of all processes.
            learning_rate: At scale 1.
            rows: Where the images are in that batch; exchanged where it is not given.

        Returns:
            The loss, the share of pixels whose class is found, and the norm of the gradient.
        """
        self._place.rows = rows or GlobalRows.of(len(images), self._processes)
        seed_all_devices(self.settings.seed, "drop path", step)
        classes = labels.long()
        inputs = normalise(images, self.spec.mean, self.spec.std).masked_fill((classes == PADDED)[:, None], 0.0)
        with autocast(self.device, self.settings.precision):
            logits, aux_logits = self._parallel(inputs)
        loss = pixel_loss_sum(logits.float(), classes)
        aux_loss = pixel_loss_sum(aux_logits.float(), classes)
        sums = {
            "loss": loss.detach(),
            "aux_loss": aux_loss.detach(),
            "count": pixel_count(classes, self.settings.published_denominator),
            "known": (classes >= 0).sum(),
            "right": _count_right(logits.detach(), classes),
        }
        sums = sum_over_processes(sums, self._processes)
        divisor = self._parallel.divisor(sums["count"])
        (loss / divisor + self.settings.aux_weight * (aux_loss / divisor)).backward()
        norm = self.clip(None)
        count = sums["count"].clamp(min=1)
        loss = sums["loss"] / count + self.settings.aux_weight * (sums["aux_loss"] / count)
        self.optimizer_step(step, learning_rate, finite=torch.isfinite(loss) & torch.isfinite(norm))
        accuracy = sums["right"] / sums["known"].clamp(min=1)
        return StepSums(loss, torch.ones_like(loss), {"pixel_accuracy": accuracy}, norm)


def _count_right(logits: Tensor, classes: Tensor) -> Tensor:
    """The pixels with a class whose class is found."""
    correct = at_size(logits.float(), (classes.shape[-2], classes.shape[-1])).argmax(dim=1) == classes
    return (correct & (classes >= 0)).sum()
