"""What a classifier is trained on in a step: images that are normalised, erased in part and mixed, and shares of classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mapet.compat import Mixup, RandomErasing, mixup_target
from mapet.data.augmentation import seeded_everywhere
from mapet.data.views import normalise
from mapet.engine.parallel import GlobalRows
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.models.spec import BackboneSpec
from mapet.runtime.processes import gather_rows


class TrainingInputs:
    """Prepares the images of a step; what is drawn is a function of (seed, step) and of the place in the batch of all processes.

    The order is timm's: pixels are erased in units of the normalised image, before images are mixed.

    Args:
        settings: Of the fine-tuning.
        spec: Of the model: its normalisation and number of classes.
        device: Where the images are.
    """

    def __init__(self, settings: FineTuneSettings, spec: BackboneSpec, device: torch.device) -> None:
        self._settings, self._recipe = settings, spec
        self._erase = RandomErasing(settings.erasing, mode="pixel", device=str(device))
        self._mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=settings.mix_prob,
            switch_prob=settings.mix_switch,
            label_smoothing=settings.smoothing,
            num_classes=spec.options["num_classes"],
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int, rows: GlobalRows) -> tuple[Tensor, Tensor, GlobalRows]:
        """The inputs (b, 3, H, W) of this process, and what to predict of them, (b, C) shares that add up to 1.

        Args:
            images: (B, 3, H, W) uint8 of this process.
            labels: (B,) int64.
            step: From 0.
            rows: Where they are in the batch of all processes.

        Returns:
            Also where the inputs are. Where images are mixed in pairs, the last of an odd number is left out.
        """
        mixes = self._settings.mixes and rows.total > 1  # what is left of a batch of unreadable images may be one
        if mixes and rows.total % 2:
            rows = _without_last(rows)
            images, labels = images[: rows.count], labels[: rows.count]
        local = range(rows.start, rows.start + rows.count)
        partners = range(rows.total - local.stop, rows.total - local.start) if mixes else local
        places = sorted({*local, *partners})
        if rows.count < rows.total and mixes:
            images, labels = gather_rows(images)[places], gather_rows(labels)[places]
        inputs = normalise(images, self._recipe.mean, self._recipe.std)
        with seeded_everywhere(self._settings.seed, "mix", step):
            if self._settings.erasing > 0:
                self._erase_all(inputs, places, rows.total)
            if not mixes:
                return inputs, mixup_target(labels, self._mixup.num_classes, smoothing=self._settings.smoothing), rows
            if rows.count < rows.total:  # timm mixes the first image with the last: this process's with their partners
                order = [places.index(place) for place in (*local, *partners)]
                inputs, labels = inputs[order], labels[order]
            inputs, targets = self._mixup(inputs, labels)
        return inputs[: rows.count], targets[: rows.count], rows

    def _erase_all(self, inputs: Tensor, places: list[int], total: int) -> None:
        """Erases in place; draws for images of other processes too, as all draws follow each other."""
        if len(places) == total:
            self._erase(inputs)
            return
        elsewhere = inputs.new_empty(inputs.shape[1:])
        input_at = dict(zip(places, inputs, strict=True))
        for place in range(total):
            self._erase(input_at.get(place, elsewhere))


def _without_last(rows: GlobalRows) -> GlobalRows:
    """The rows without the last image of all processes."""
    total = rows.total - 1
    return replace(rows, start=min(rows.start, total), count=min(rows.count, max(0, total - rows.start)), total=total)
