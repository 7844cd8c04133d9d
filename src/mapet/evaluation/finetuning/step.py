"""One optimizer step of a fine-tuning: normalise, erase, mix, predict, clip, step. There is no host sync."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.compat import Mixup, RandomErasing, mixup_target
from mapet.data.augmentation import seeded_everywhere
from mapet.data.views import normalise
from mapet.engine.step import GuardedStep, StepSums
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.models.spec import BackboneRecipe
from mapet.runtime.device import autocast
from mapet.runtime.seeding import derive_seed


class FineTuneStep(GuardedStep):
    """Applies optimizer steps to a classifier.

    Mixing, erasing and drop path are functions of (seed, step).

    Args:
        model: Trained in place, in training mode.
        optimizer: Fused; its groups have an `lr_scale`.
        settings: Of the fine-tuning.
        recipe: Of the model: its normalisation and number of classes.
        device: Where model and batches are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: FineTuneSettings,
        recipe: BackboneRecipe,
        device: torch.device,
    ) -> None:
        super().__init__(optimizer, device)
        self.model, self.settings, self.recipe = model, settings, recipe
        self._erase = RandomErasing(settings.erasing, mode="pixel", device=str(device))
        self._mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=settings.mix_prob,
            switch_prob=settings.mix_switch,
            label_smoothing=settings.smoothing,
            num_classes=recipe.options["num_classes"],
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int, learning_rate: float) -> StepSums:
        """Takes step number `step`.

        Args:
            images: (B, 3, H, W) uint8, on the device, at least one. Of an odd number the last is left out where images are mixed in
                pairs; a single one is not mixed.
            labels: (B,) int64.
            step: From 0.
            learning_rate: Of the layers behind the blocks.
        """
        torch.manual_seed(derive_seed(self.settings.seed, "drop path", step))  # every device; a GPU's noise too
        inputs, targets = self.prepare(images, labels, step)
        loss = self._backward(inputs, targets)
        norm = self.clip(self.settings.clip_norm)
        self.optimizer_step(step, learning_rate, finite=torch.isfinite(loss) & torch.isfinite(norm))
        return StepSums(loss, torch.full_like(loss, len(inputs)), {}, norm)

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Normalised, erased and mixed images (B, 3, H, W), and what to predict of them, (B, C) shares that add up to 1.

        The order is timm's: pixels are erased in units of the normalised image, before images are mixed.
        """
        mixes = self.settings.mixes and len(images) > 1  # what is left of a batch of unreadable images may be one
        if mixes and len(images) % 2:
            images, labels = images[:-1], labels[:-1]
        inputs = normalise(images, self.recipe.mean, self.recipe.std)
        with seeded_everywhere(self.settings.seed, "mix", step):
            if self.settings.erasing > 0:
                inputs = self._erase(inputs)
            if not mixes:
                return inputs, self._targets(labels)
            return self._mixup(inputs, labels)

    def _targets(self, labels: Tensor) -> Tensor:
        """Smoothed labels, (B, C)."""
        return mixup_target(labels, self._mixup.num_classes, smoothing=self.settings.smoothing)

    def _backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Gradients of the mean cross-entropy; returns its sum."""
        size = self.settings.micro_batch or len(inputs)
        losses = []
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            with autocast(self.device, self.settings.precision):
                logits = self.model(inputs[part])
            loss = cross_entropy(logits.float(), targets[part], reduction="sum")
            (loss / len(inputs)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()
