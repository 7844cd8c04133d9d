"""The pre-training of an objective, as the engine runs it: which batches are loaded and how a step is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mapet.config.settings import PretrainSettings
from mapet.data.batch import UnreadableImage
from mapet.data.loader import RegionRenderer, make_loader
from mapet.data.order import step_batches
from mapet.data.regions import regions_of
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.data.views import Rendering
from mapet.engine.callbacks import Monitor
from mapet.engine.checkpoint import Checkpoint
from mapet.engine.loop import LoopSettings, Training
from mapet.engine.schedule import cosine
from mapet.engine.step import StepSums
from mapet.health.context import PretrainContext
from mapet.objectives.base import Objective
from mapet.pretraining.step import TrainingStep
from mapet.runtime.progress import say_fact
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.token_source import TokenSource


@dataclass(frozen=True)
class TokenisedBatch:
    """One batch on the device.

    Args:
        images: (B, 3, H, W) uint8.
        token_ids: (B, N_p) int64, or None where the objective predicts no tokens.
        keys: B sample keys.
        unreadable: What was skipped.
    """

    images: Tensor
    token_ids: Tensor | None
    keys: list[str]
    unreadable: list[UnreadableImage]


class PreTraining(Training[TokenisedBatch]):
    """Trains an objective on a source and its visual tokens, from wherever the run directory left off.

    Args:
        objective: Trained in place; moved to `device`.
        source: The images.
        tokens: Their visual tokens.
        settings: Of the run.
        run: Where everything is written.
        device: Where to compute.
        monitors: Those that observe, such as `VitalSigns`.
        unreadable: Counts the images that cannot be read; by default as many may be skipped as the settings allow.
        loop: Of `Training`: `processes`, `stop`, `clock`.
    """

    name, title = "pre-training", "Pre-training"
    remedy = "In a new --out, a lower training.lr, a longer warm-up or training.precision=fp32 usually helps."
    step: TrainingStep

    def __init__(
        self,
        objective: Objective,
        source: ImageSource,
        tokens: TokenSource,
        settings: PretrainSettings,
        run: RunDirectory,
        device: torch.device,
        *,
        monitors: Sequence[Monitor[Any]] = (),
        unreadable: UnreadableImages | None = None,
        **loop: Any,
    ) -> None:
        mechanics, training = settings.mechanics, settings.training
        unreadable_images = UnreadableImages(mechanics.max_unreadable) if unreadable is None else unreadable
        when = LoopSettings(mechanics.log_every, mechanics.checkpoint_every, None, mechanics.keep_checkpoints)
        super().__init__(run, device, unreadable_images, when, monitors=monitors, **loop)
        self.objective, self.source, self.tokens, self.settings = objective.to(device), source, tokens, settings
        self.regions = regions_of(settings.view, settings.seed)
        self.model = self.state = self.objective
        self.step = TrainingStep(objective, settings, device, self.processes)
        self.steps_per_epoch = step_batches(len(source), training.batch_size, settings.seed, 0, 0).steps_per_epoch
        self.total_steps = training.steps or max(1, round((training.epochs or 0) * self.steps_per_epoch))
        self.warmup_steps = training.warmup_steps + round(training.warmup_epochs * self.steps_per_epoch)
        if self.warmup_steps >= self.total_steps:
            say_fact(
                f"The warm-up of {self.warmup_steps:,} steps does not end within the {self.total_steps:,} steps of the run: the "
                f"learning rate stays below training.lr ({training.lr:g}). Set training.warmup_epochs or warmup_steps lower."
            )
        self.identity = settings.science_hash
        self.first_step = self.resume()

    def context(self) -> PretrainContext:
        """The context of the monitors."""
        return PretrainContext(
            **vars(super().context()),
            objective=self.objective,
            source=self.source,
            tokens=self.tokens,
            regions=self.regions,
            settings=self.settings,
            warmup_steps=self.warmup_steps,
        )

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine."""
        rates = self.settings.training
        return cosine(step, self.total_steps, self.warmup_steps, lr=rates.lr, min_lr=rates.min_lr, warmup_lr=rates.warmup_lr)

    def training_step(self, step: int, batch: TokenisedBatch, lr: float) -> tuple[StepSums, int]:
        """One optimizer step; a batch of which nothing could be read is one without targets."""
        sums = self.step(batch.images, batch.token_ids, step, lr)
        return sums, self.step.rows.total

    def batches(self) -> Iterator[TokenisedBatch]:
        """Images and tokens of every step that is left."""
        settings, which, processes = self.settings, (self.first_step, self.total_steps), self.processes
        steps = step_batches(len(self.source), settings.training.batch_size, settings.seed, *which, processes.rank, processes.world)
        renderer = RegionRenderer(self.regions, Rendering(self.objective.view_size), self.tokens.rendering)
        items = steps.items(self.regions.view_index)  # all images of a step have the same view index
        for loaded in make_loader(self.source, renderer, items, settings.mechanics.workers, self.device):
            images = loaded.images.to(self.device, non_blocking=True)
            yield TokenisedBatch(images, self.tokens.tokens(loaded, self.device), loaded.keys, loaded.unreadable)

    def other_training(self, checkpoint: Checkpoint) -> str:
        """The message where the checkpoint found is not one of this run."""
        return f"{checkpoint.path} was trained with other settings than {self.run_directory.config}."
