"""Trains a VQ-KD tokenizer on any images with any teacher; an interrupted training goes on exactly where it stopped.

TOK/                          the tokenizer, written when the training ends
TOK.training/config.json      settings and number of images; a continued training must have the same
             teacher/         the fitted teacher
             state.safetensors   encoder, decoder, codebook, the optimizer's moments
             metrics.jsonl    one line every few steps
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.data.crop_loader import CropBatch, make_crop_loader
from mapet.data.crops import RandomCrops
from mapet.data.loader import UnreadableImages, step_batches
from mapet.data.sources import ImageSource
from mapet.data.views import Rendering
from mapet.errors import CheckpointError, InterruptedRunError
from mapet.runtime.files import write_json
from mapet.runtime.interrupt import StopRequest
from mapet.runtime.json_files import read_json
from mapet.runtime.processes import Processes, barrier, only_writers, process_group
from mapet.runtime.progress import ProgressBar, progress, say
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_generator, seeded_globally
from mapet.tokenizers.base import refuse_other_content
from mapet.tokenizers.features.base import FeatureExtractor
from mapet.tokenizers.vq_kd.codebook import RECENT_STEPS
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.log import TrainingLog
from mapet.tokenizers.vq_kd.settings import VQKDSettings
from mapet.tokenizers.vq_kd.state import load_state, save_state
from mapet.tokenizers.vq_kd.step import DistillationStep, make_optimizer
from mapet.tokenizers.vq_kd.teacher import create_teacher, fit_teacher, saved_teacher
from mapet.tokenizers.vq_kd.tokenizer import VQKD


def train_vq_kd(
    source: ImageSource,
    out: Path | str,
    settings: VQKDSettings,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    unreadable: UnreadableImages,
    save_every: int = 500,
    log_every: int = 10,
) -> VQKD:
    """Trains a tokenizer and saves it at `out`, or goes on with the training that is there.

    Under torchrun, every process takes its share of each batch; all of them end with the same tokenizer, and the first saves it.

    Args:
        source: The images.
        out: Folder for the tokenizer.
        settings: What is learned.
        device: Where to compute.
        workers: Processes that decode images, for each process that trains.
        unreadable: Counts and names the images that cannot be read.
        save_every: Steps between two states on disk.
        log_every: Steps between two lines of metrics.jsonl.

    Returns:
        The tokenizer, on the CPU; its `fit_report` tells the last loss and the use of the codebook.

    Raises:
        TokenizerError: The teacher does not fit, or `out` is something else.
        CheckpointError: `out` was begun with other settings or images.
        NonFiniteLossError: The loss or its gradient is not finite; the last state is intact.
        InterruptedRunError: SIGINT or SIGTERM came; the state was saved.
    """
    out = Path(out)
    refuse_other_content(out)
    with process_group(device) as processes, only_writers(out, processes):
        training = VQKDTraining(source, out, settings, processes, processes.device(device), workers, unreadable)
        training.run(save_every, log_every)
        tokenizer = training.tokenizer()
        if processes.rank == 0:
            tokenizer.save(out)
        barrier()
    return tokenizer


class VQKDTraining:
    """One process of a training, at the step where its folder left off.

    Args:
        source: The images.
        out: Folder for the tokenizer; the training's own is beside it.
        settings: What is learned.
        processes: This process among all.
        device: Of this process.
        workers: Processes that decode images for this one.
        unreadable: Counts and names the images that cannot be read.
    """

    def __init__(
        self,
        source: ImageSource,
        out: Path,
        settings: VQKDSettings,
        processes: Processes,
        device: torch.device,
        workers: int,
        unreadable: UnreadableImages,
    ) -> None:
        self.source, self.settings, self.processes, self.device = source, settings, processes, device
        self.workers, self.unreadable, self.first = workers, unreadable, processes.rank == 0
        self.steps_per_epoch = step_batches(len(source), settings.batch_size, settings.seed, 0, 0).steps_per_epoch
        self.total_steps = settings.total_steps(self.steps_per_epoch)
        self.directory = RunDirectory(out.absolute().with_name(f"{out.absolute().name}.training"))
        self.state = self.directory.path / "state.safetensors"
        with seeded_globally(settings.seed, "encoder"):
            tokenizer = _tokenizer(settings)
        self.teacher = self._prepared_teacher(tokenizer.grid_size)
        with seeded_globally(settings.seed, "decoder"):
            self.model = Distillation(tokenizer, self.teacher.dim, settings.decoder_depth).to(device)
        self.optimizer = make_optimizer(self.model, settings)
        self.distil = DistillationStep(self.model, self.optimizer, self.teacher, settings.precision)
        self.step, self._window = load_state(self.state, self.model, self.optimizer)
        if self.first:
            self.directory.forget_metrics_after(self.step)

    def run(self, save_every: int, log_every: int) -> None:
        """Takes all steps that are left; see `train_vq_kd`."""
        if self.step == self.total_steps:
            return
        if self.step and self.first:
            say(f"Continuing from step {self.step} of {self.total_steps}.")
        log = TrainingLog(self.directory, self.model, self._window.to(self.device))
        with StopRequest() as stop, self._progress() as bar:
            for images, seen, keys in self._load():
                if self.step == 0:
                    self.model.start(images, seeded_generator(self.settings.seed, "codebook"), self.settings.precision)
                rate = self.settings.learning_rate(self.step, self.total_steps)
                sums, stopping = self.distil(images, seen, keys, self.step, rate, stop.requested)
                self.step += 1
                finished = self.step == self.total_steps
                planned = finished or self.step % save_every == 0
                if bar is not None:
                    log.add(sums)
                    if planned or self.step % log_every == 0:
                        log.write(self.step, rate, bar)
                    bar.advance()
                if planned or stopping:
                    self._save(log.window())
                if stopping and not finished:
                    raise InterruptedRunError(f"Stopped after step {self.step}. The same command continues from there.")

    def _load(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """The crops of every step that is left, in [0, 1]: as the tokenizer sees them, as the teacher does, and sample keys."""
        settings, processes = self.settings, self.processes
        crops = RandomCrops(None, settings.scale, settings.flip, settings.seed)
        steps = step_batches(
            len(self.source), settings.batch_size, settings.seed, self.step, self.total_steps, processes.rank, processes.world
        )
        own, teachers = Rendering(settings.image_size, VQKD.interpolation), Rendering(self.teacher.image_size)
        loader = make_crop_loader(
            self.source,
            crops,
            (CropBatch(indices, (crops.number(epoch),)) for epoch, indices in steps.with_epochs()),
            teachers,
            tokenizer_rendering=None if own == teachers else own,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            self.unreadable.record(batch.unreadable)
            seen = batch.images.to(self.device, non_blocking=True).float() / 255
            tokenised = batch.tokenizer_images
            yield seen if tokenised is None else tokenised.to(self.device, non_blocking=True).float() / 255, seen, batch.keys

    def tokenizer(self) -> VQKD:
        """What was learned so far, on the CPU."""
        tokenizer = _tokenizer(self.settings)
        tokenizer.load_state_dict(self.model.tokenizer.state_dict())
        last = (self.directory.read_metrics() or [{}])[-1]
        names = ("loss", "reconstruction", "commitment", "used_codes", "perplexity")
        measured = {name: last[name] for name in names if name in last}
        facts = {"teacher": self.settings.teacher, "images": len(self.source), "steps": self.step, "seed": self.settings.seed}
        tokenizer.fit_report = {**facts, **measured, "usage_over_steps": min(RECENT_STEPS, self.step)}
        return tokenizer

    def _progress(self) -> AbstractContextManager[ProgressBar | None]:
        """A bar in the first process, nothing in the others."""
        return progress("Training VQ-KD", self.total_steps, self.step) if self.first else nullcontext()

    def _save(self, window: Tensor) -> None:
        if self.first:
            save_state(self.state, self.step, self.model, self.optimizer, window)

    def _prepared_teacher(self, grid_size: tuple[int, int]) -> FeatureExtractor:
        """The teacher that was kept or, where nothing is begun, a new one; then writes down what this training is."""
        folder = self.directory.path / "teacher"
        kept = None if self._begins_anew() else saved_teacher(folder)
        new = None if kept is not None else create_teacher(self.settings, grid_size)
        barrier()
        if self.first:
            if new is not None:
                shutil.rmtree(folder, ignore_errors=True)  # left by a training that took no step
            write_json(self.directory.config, self._facts())
            self.directory.record_environment()
            if new is not None:
                places = {"device": self.device, "workers": self.workers, "unreadable": self.unreadable}
                fit_teacher(new, self.source, self.settings.seed, folder, **places)
        barrier()
        teacher = kept or saved_teacher(folder)
        assert teacher is not None
        return teacher.to(self.device)

    def _begins_anew(self) -> bool:
        """Whether what lies there, if anything, has taken no step and was to be another training.

        Raises:
            CheckpointError: It has taken steps, with other settings or images.
        """
        if not self.directory.config.is_file():
            return True
        old, new = read_json(self.directory.config, dict), self._facts()
        changed = [f"{name} was {old.get(name)}, is {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed and self.state.is_file():
            raise CheckpointError(
                f"{self.directory.path} holds a training with other settings: {'; '.join(changed[:4])}. Continue it with its own, "
                "delete it to begin again, or give another --out."
            )
        return bool(changed)

    def _facts(self) -> dict[str, Any]:
        """What a continued training must have in common with what it was begun as."""
        return {**self.settings.plain(), "images": len(self.source)}


def _tokenizer(settings: VQKDSettings) -> VQKD:
    return VQKD(settings.image_size, settings.vocab_size, settings.code_dim, settings.encoder, settings.encoder_options)
