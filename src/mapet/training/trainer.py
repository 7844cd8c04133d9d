"""The training loop: load, step, log, checkpoint, until done or asked to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mapet.config.settings import PretrainSettings
from mapet.data.crop_loader import CropBatch, make_crop_loader
from mapet.data.crops import crops_of
from mapet.data.loader import LoadedBatch, UnreadableImages, step_batches
from mapet.data.sources import ImageSource
from mapet.data.views import Rendering
from mapet.errors import CheckpointError, InterruptedRunError, NonFiniteLossError
from mapet.objectives.base import Objective
from mapet.runtime.files import write_json
from mapet.runtime.interrupt import StopRequest
from mapet.runtime.progress import progress, say
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.encode import encode, rendering_for
from mapet.token_store.read import TokenStore
from mapet.tokenizers.base import Tokenizer
from mapet.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from mapet.training.log import TrainingLog
from mapet.training.monitor import Monitor, Watch
from mapet.training.optim import learning_rate, make_optimizer
from mapet.training.step import TrainingStep
from mapet.training.vital_signs import VitalSigns


class Trainer:
    """Trains an objective on a source and its visual tokens, from wherever the run directory left off.

    Tokens are looked up in a store, or computed from the very crop that the objective is shown, or there are none, for objectives
    that predict something else.

    Args:
        objective: Trained in place; moved to `device`.
        source: The images, every one of which `store` knows if there is one.
        store: Their visual tokens; None where they are computed, or not needed.
        settings: Of the run.
        run: Where everything is written.
        device: Where to compute.
        tokenizer: Computes the tokens where they are not stored; moved to `device`.
        monitors: Who watches besides the vital signs, which every run has.
        unreadable: Counts the images that cannot be read; by default as many may be skipped as the settings allow.
    """

    def __init__(
        self,
        objective: Objective,
        source: ImageSource,
        store: TokenStore | None,
        settings: PretrainSettings,
        run: RunDirectory,
        device: torch.device,
        tokenizer: Tokenizer | None = None,
        monitors: Sequence[Monitor] = (),
        unreadable: UnreadableImages | None = None,
    ) -> None:
        self.objective, self.source, self.store = objective.to(device), source, store
        self.tokenizer = tokenizer.to(device).eval() if tokenizer is not None else None
        self.crops = crops_of(settings.view, settings.seed)
        self.settings, self.run_directory, self.device = settings, run, device
        self.optimizer = make_optimizer(objective, settings.training)
        self.training_step = TrainingStep(objective, self.optimizer, settings, device)
        self.steps_per_epoch = step_batches(len(source), settings.training.batch_size, settings.seed, 0, 0).steps_per_epoch
        self.total_steps = settings.training.steps or max(1, round((settings.training.epochs or 0) * self.steps_per_epoch))
        self.warmup_steps = settings.training.warmup_steps + round(settings.training.warmup_epochs * self.steps_per_epoch)
        if self.warmup_steps >= self.total_steps:
            say(
                f"The warm-up of {self.warmup_steps:,} steps does not end within the {self.total_steps:,} steps of the run: "
                f"the rate stays below training.lr ({settings.training.lr:g}). Set training.warmup_epochs or warmup_steps lower."
            )
        self.monitors = [VitalSigns(), *monitors]
        self.unreadable = UnreadableImages(settings.mechanics.max_unreadable) if unreadable is None else unreadable
        self.first_step = self._resume()
        self._recent: deque[tuple[int, list[str]]] = deque(maxlen=settings.mechanics.log_every)

    def run(self) -> None:
        """Takes all steps that are left.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written.
        """
        if self.first_step == self.total_steps:
            return
        mechanics = self.settings.mechanics
        log = TrainingLog(self.run_directory, self.first_step, self.steps_per_epoch)
        log.restore(self.window, self.device)
        self.objective.train()
        watch = Watch(self.monitors, self)
        with StopRequest() as stop, progress("Pre-training", self.total_steps, self.first_step) as bar:
            for step, (images, token_ids) in enumerate(log.timed(self._load()), self.first_step):
                rate = learning_rate(step, self.total_steps, self.warmup_steps, self.settings.training)
                watch.before_step(step, token_ids)
                log.add(self.training_step(images, token_ids, step, rate), len(images))
                done, stopping = step + 1, stop.requested
                planned = done % mechanics.checkpoint_every == 0 or done == self.total_steps
                write, save = planned or done % mechanics.log_every == 0, planned or stopping
                if write or save or self.device.type == "cpu":
                    self._check_finite()
                if write:
                    log.write(done, rate, bar, watch)
                if save:
                    self._save(done, log.window() | watch.state())
                bar.advance()
                if stopping and done < self.total_steps:
                    raise InterruptedRunError(f"Stopped after step {done}. The same command continues from there.")

    def _load(self) -> Iterable[tuple[Tensor, Tensor | None]]:
        """Images (B, 3, H, W) uint8 and tokens (B, N_p) of every step that is left, on the device."""
        mechanics = self.settings.mechanics
        loader = make_crop_loader(
            self.source,
            self.crops,
            self._batches(),
            Rendering(self.objective.view_size),
            tokenizer_rendering=rendering_for(self.tokenizer) if self.tokenizer is not None else None,
            workers=mechanics.workers,
            pin_memory=self.device.type == "cuda",
        )
        for step, loaded in enumerate(loader, self.first_step):
            self.unreadable.record(loaded.unreadable)
            self._recent.append((step, loaded.keys))
            yield loaded.images.to(self.device, non_blocking=True), self._tokens(loaded)

    def _batches(self) -> Iterator[CropBatch]:
        """Images and crop of every step that is left; within one step, all images show the crop of the same number."""
        settings = self.settings
        steps = step_batches(len(self.source), settings.training.batch_size, settings.seed, self.first_step, self.total_steps)
        return (CropBatch(indices, (self.crops.number(epoch),)) for epoch, indices in steps.with_epochs())

    def _tokens(self, loaded: LoadedBatch) -> Tensor | None:
        """Tokens (B, N_p) of exactly the crops in `loaded`."""
        if self.tokenizer is not None and loaded.tokenizer_images is not None:
            return encode(self.tokenizer, loaded.tokenizer_images, self.device).flatten(1)
        if self.store is None:
            return None
        ids = self.store.lookup(loaded.keys, loaded.crops[0]).flatten(1)
        if self.device.type == "cuda":
            ids = ids.pin_memory()  # else the copy would wait for the device
        return ids.to(self.device, non_blocking=True)

    def _resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the step to go on with."""
        checkpoint = newest_checkpoint(self.run_directory.checkpoints)
        self.window: dict[str, Tensor] = {} if checkpoint is None else checkpoint.window()
        if checkpoint is None:
            self.run_directory.forget_metrics_after(0)
            return 0
        if checkpoint.science_hash != self.settings.science_hash:
            raise CheckpointError(f"{checkpoint.path} was trained with other settings than {self.run_directory.config}.")
        load_checkpoint(checkpoint, self.objective, self.optimizer)
        self.run_directory.forget_metrics_after(checkpoint.step)
        if checkpoint.step < self.total_steps:
            say(f"Continuing from step {checkpoint.step} of {self.total_steps}.")
        return checkpoint.step

    def _save(self, step: int, window: dict[str, Tensor]) -> None:
        folder, keep = self.run_directory.checkpoints, self.settings.mechanics.keep_checkpoints
        save_checkpoint(folder, step, self.settings.science_hash, self.objective, self.optimizer, keep, window)

    def _check_finite(self) -> None:
        step = int(self.training_step.halted_at)
        if step < 0:
            return
        keys = dict(self._recent).get(step, [])
        path = self.run_directory.path / "nonfinite.json"
        write_json(path, {"step": step, "sample_keys": keys})
        raise NonFiniteLossError(
            f"The loss or its gradient is not finite at step {step}. The optimizer did not move; the last checkpoint is intact. "
            f"Sample keys of that batch: {', '.join(keys[:4])} ... (all {len(keys)} in {path}). "
            "In a new --out, a lower training.lr, a longer warm-up or training.precision=fp32 usually helps."
        )
