"""Trains a VQ-KD tokenizer on any images with any teacher; an interrupted training goes on exactly where it stopped.

TOK/                          the tokenizer, written when the training ends
TOK.training/config.json      settings and number of images; a continued training must have the same
             teacher/         the fitted teacher
             checkpoints/     encoder, decoder, codebook, the optimizer's moments
             metrics.jsonl    one line every few steps
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.data.batch import UnreadableImage
from mapet.data.loader import RegionRenderer, make_loader
from mapet.data.order import step_batches
from mapet.data.regions import RandomCrops
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.data.views import Rendering
from mapet.engine.loop import LoopSettings, Training
from mapet.engine.step import StepSums
from mapet.errors import CheckpointError
from mapet.runtime.files import write_json
from mapet.runtime.json_files import read_json
from mapet.runtime.processes import Processes, barrier, only_writers, process_group
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_generator, seeded_globally
from mapet.tokenizers.base import refuse_other_content
from mapet.tokenizers.features.base import FeatureExtractor
from mapet.tokenizers.vq_kd.codebook import RECENT_STEPS
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.settings import VQKDSettings
from mapet.tokenizers.vq_kd.state import load_earlier_state
from mapet.tokenizers.vq_kd.step import DistillationStep, make_optimizer
from mapet.tokenizers.vq_kd.teacher import create_teacher, fit_teacher, saved_teacher
from mapet.tokenizers.vq_kd.tokenizer import VQKD
from mapet.tokenizers.vq_kd.use import CodebookUse


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
    **loop: Any,
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
        loop: Of `Training`: `stop`, `clock`.

    Returns:
        The tokenizer, on the CPU; its `fit_report` has the last loss and the use of the codebook.

    Raises:
        TokenizerError: The teacher does not fit, or `out` is something else.
        CheckpointError: `out` was begun with other settings or images.
        NonFiniteLossError: The loss or its gradient is not finite; the last state is intact.
        InterruptedRunError: SIGINT or SIGTERM came; the state was saved.
    """
    out = Path(out)
    refuse_other_content(out)
    with process_group(device) as processes, only_writers(out, processes):
        when = LoopSettings(log_every, save_every, None)
        training = VQKDTraining(source, out, settings, processes, processes.device(device), workers, unreadable, when, **loop)
        training.run()
        barrier()  # the first process has written the last line of the log
        tokenizer = training.tokenizer()
        if processes.rank == 0:
            tokenizer.save(out)
        barrier()
    return tokenizer


@dataclass(frozen=True)
class DistillationBatch:
    """The crops of one batch, on the device.

    Args:
        images: (B, 3, size, size) in [0, 1], as the tokenizer sees them.
        seen: The same crops as the teacher sees them.
        keys: B sample keys.
        unreadable: What was skipped.
    """

    images: Tensor
    seen: Tensor
    keys: list[str]
    unreadable: list[UnreadableImage]


class VQKDTraining(Training[DistillationBatch]):
    """One process of a training, at the step where its folder left off.

    Args:
        source: The images.
        out: Folder for the tokenizer; the training's own is beside it.
        settings: What is learned.
        processes: This process among all.
        device: Of this process.
        workers: Processes that decode images for this one.
        unreadable: Counts and names the images that cannot be read.
        loop: Of `Training`: `when`, `stop`, `clock`.
    """

    name, title = "VQ-KD training", "Training VQ-KD"
    remedy = "In a new --out, a lower --lr or --precision fp32 usually helps."
    model: Distillation
    step: DistillationStep

    def __init__(
        self,
        source: ImageSource,
        out: Path,
        settings: VQKDSettings,
        processes: Processes,
        device: torch.device,
        workers: int,
        unreadable: UnreadableImages,
        when: LoopSettings,
        **loop: Any,
    ) -> None:
        directory = RunDirectory(out.absolute().with_name(f"{out.absolute().name}.training"))
        super().__init__(directory, device, unreadable, when, processes=processes, **loop)
        self.source, self.settings, self.workers = source, settings, workers
        self.steps_per_epoch = step_batches(len(source), settings.batch_size, settings.seed, 0, 0).steps_per_epoch
        self.total_steps = settings.total_steps(self.steps_per_epoch)
        with seeded_globally(settings.seed, "encoder"):
            tokenizer = _tokenizer(settings)
        self.teacher = self._prepared_teacher(tokenizer.grid_size)
        with seeded_globally(settings.seed, "decoder"):
            self.model = self.state = Distillation(tokenizer, self.teacher.dim, settings.decoder_depth).to(device)
        self.patches_per_image = math.prod(tokenizer.grid_size)
        self.monitors = [CodebookUse(self.model, settings.batch_size * self.patches_per_image)]
        optimizer = make_optimizer(self.model, settings)
        self.step = DistillationStep(self.model, optimizer, self.teacher, settings.precision, device)
        self.identity = hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode()).hexdigest()[:16]
        self.first_step = self.resume()

    def resume(self) -> int:
        """As `Training.resume`; a state that an earlier release wrote is continued, too."""
        earlier = self.run_directory.path / "state.safetensors"
        if not earlier.is_file() or self.run_directory.checkpoints.is_dir():
            return super().resume()
        step, self._window = load_earlier_state(earlier, self.model, self.step.optimizer, self.patches_per_image)
        if self.is_first_process:
            self.run_directory.forget_metrics_after(step)
        return step

    def learning_rate(self, step: int) -> float:
        """Warm-up and cosine."""
        return self.settings.learning_rate(step, self.total_steps)

    def training_step(self, step: int, batch: DistillationBatch, lr: float) -> tuple[StepSums, int]:
        """One optimizer step; the first batch also starts the codebook."""
        if step == 0:
            self.model.start(batch.images, seeded_generator(self.settings.seed, "codebook"), self.settings.precision)
        sums = self.step(batch.images, batch.seen, step, lr)
        return sums, int(sums.targets) // self.patches_per_image

    def batches(self) -> Iterator[DistillationBatch]:
        """The crops of every step that is left, those of this process."""
        settings, processes = self.settings, self.processes
        regions = RandomCrops(None, settings.scale, settings.flip, settings.seed)
        steps = step_batches(
            len(self.source), settings.batch_size, settings.seed, self.first_step, self.total_steps, processes.rank, processes.world
        )
        tokenizer_rendering, teacher_rendering = (
            Rendering(settings.image_size, VQKD.interpolation),
            Rendering(self.teacher.image_size),
        )
        renderer = RegionRenderer(
            regions, teacher_rendering, None if tokenizer_rendering == teacher_rendering else tokenizer_rendering
        )
        for batch in make_loader(self.source, renderer, steps.items(regions.view_index), self.workers, self.device):
            seen = batch.images.to(self.device, non_blocking=True).float() / 255
            tokenised = batch.tokenizer_images
            images = seen if tokenised is None else tokenised.to(self.device, non_blocking=True).float() / 255
            yield DistillationBatch(images, seen, batch.keys, batch.unreadable)

    def tokenizer(self) -> VQKD:
        """What was learned so far, on the CPU."""
        tokenizer = _tokenizer(self.settings)
        tokenizer.load_state_dict(self.model.tokenizer.state_dict())
        last = (self.run_directory.read_metrics() or [{}])[-1]
        names = ("loss", "reconstruction", "commitment", "used_codes", "perplexity")
        measured = {name: last[name] for name in names if name in last}
        steps = self.total_steps
        facts = {"teacher": self.settings.teacher, "images": len(self.source), "steps": steps, "seed": self.settings.seed}
        tokenizer.fit_report = {**facts, **measured, "usage_over_steps": min(RECENT_STEPS, steps)}
        return tokenizer

    def _prepared_teacher(self, grid_size: tuple[int, int]) -> FeatureExtractor:
        """The teacher that was kept or, where nothing is begun, a new one; then writes down what this training is."""
        folder = self.run_directory.path / "teacher"
        saved = None if self._begins_anew() else saved_teacher(folder)
        new = None if saved is not None else create_teacher(self.settings, grid_size)
        barrier()
        if self.is_first_process:
            if new is not None:
                shutil.rmtree(folder, ignore_errors=True)  # left by a training that took no step
            write_json(self.run_directory.config, self._facts())
            self.run_directory.record_environment()
            if new is not None:
                places = {"device": self.device, "workers": self.workers, "unreadable": self.unreadable}
                fit_teacher(new, self.source, self.settings.seed, folder, **places)
        barrier()
        teacher = saved or saved_teacher(folder)
        assert teacher is not None
        return teacher.to(self.device)

    def _begins_anew(self) -> bool:
        """Whether what lies there, if anything, has taken no step and was to be another training.

        Raises:
            CheckpointError: It has taken steps, with other settings or images.
        """
        if not self.run_directory.config.is_file():
            return True
        old, new = read_json(self.run_directory.config, dict), self._facts()
        changed = [f"{name} was {old.get(name)}, is {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]
        has_started = self.run_directory.checkpoints.is_dir() or (self.run_directory.path / "state.safetensors").is_file()
        if changed and has_started:
            raise CheckpointError(
                f"{self.run_directory.path} holds a training with other settings: {'; '.join(changed[:4])}. Continue it with its "
                "own, delete it to begin again, or give another --out."
            )
        return bool(changed)

    def _facts(self) -> dict[str, Any]:
        """What a continued training must have in common with what it was begun as."""
        return {**self.settings.plain(), "images": len(self.source)}


def _tokenizer(settings: VQKDSettings) -> VQKD:
    return VQKD(settings.image_size, settings.vocab_size, settings.code_dim, settings.encoder, settings.encoder_options)
