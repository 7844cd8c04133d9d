"""One optimizer step of a segmentation: normalise, predict, step. There is no host sync."""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.data.mask_files import PADDED
from mapet.data.views import normalise
from mapet.engine.step import GuardedStep, StepSums
from mapet.evaluation.segmentation.loss import at_size, pixel_loss
from mapet.evaluation.segmentation.model import UperNet
from mapet.evaluation.segmentation.settings import SegmentSettings
from mapet.models.spec import BackboneRecipe
from mapet.runtime.device import autocast
from mapet.runtime.seeding import derive_seed


class SegmentationStep(GuardedStep):
    """Applies optimizer steps to a model.

    Args:
        model: Trained in place.
        optimizer: Fused; its groups have an `lr_scale`.
        settings: Of the training.
        recipe: For the normalisation.
        device: Where model and batches are.
    """

    def __init__(
        self,
        model: UperNet,
        optimizer: torch.optim.Optimizer,
        settings: SegmentSettings,
        recipe: BackboneRecipe,
        device: torch.device,
    ) -> None:
        super().__init__(optimizer, device)
        self.model, self.settings, self.recipe = model, settings, recipe

    def __call__(self, images: Tensor, labels: Tensor, step: int, learning_rate: float) -> StepSums:
        """Takes step number `step`.

        Args:
            images: (B, 3, H, W) uint8, on the device.
            labels: (B, H, W) int16; negative where there is no class.
            step: From 0; drop path and dropout are functions of it.
            learning_rate: At scale 1.

        Returns:
            The loss, the share of pixels whose class is found, and the norm of the gradient.
        """
        torch.manual_seed(derive_seed(self.settings.seed, "drop path", step))
        classes = labels.long()
        inputs = normalise(images, self.recipe.mean, self.recipe.std).masked_fill((classes == PADDED)[:, None], 0.0)
        with autocast(self.device, self.settings.precision):
            logits, aux_logits = self.model(inputs)
        published = self.settings.published_denominator
        loss = pixel_loss(logits.float(), classes, published)
        loss = loss + self.settings.aux_weight * pixel_loss(aux_logits.float(), classes, published)
        loss.backward()
        norm = self.clip(None)
        loss = loss.detach()
        self.optimizer_step(step, learning_rate, finite=torch.isfinite(loss) & torch.isfinite(norm))
        return StepSums(loss, torch.ones_like(loss), {"pixel_accuracy": _accuracy(logits.detach(), classes)}, norm)


def _accuracy(logits: Tensor, classes: Tensor) -> Tensor:
    """Share of the pixels with a class whose class is found."""
    known = classes >= 0
    found = at_size(logits.float(), (classes.shape[-2], classes.shape[-1])).argmax(dim=1) == classes
    return (found & known).sum() / known.sum().clamp(min=1)
