"""VQ-KD in each of several processes, each with its share of every batch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mapet.data.skipped import UnreadableImages
from mapet.errors import MapetError
from mapet.runtime.processes import Processes, any_process, process_group
from mapet.runtime.seeding import seeded_globally
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.settings import VQKDSettings
from mapet.tokenizers.vq_kd.step import DistillationStep, make_optimizer
from mapet.tokenizers.vq_kd.tokenizer import VQKD
from mapet.tokenizers.vq_kd.training import VQKDTraining, train_vq_kd
from tests.tiny import BATCH, CPU, IMAGES, TinyImages, at_step

SETTINGS = VQKDSettings(
    teacher="pixels",
    teacher_options={"dim": 12},
    image_size=16,
    vocab_size=20,
    code_dim=8,
    encoder="vit_tiny_patch16_224",
    encoder_options={"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2},
    decoder_depth=1,
    steps=6,
    batch_size=BATCH,
    lr=2e-3,
)
STEPS = 4


class ProjectingTeacher(nn.Module):
    """Random projections of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 12, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).permute(0, 2, 3, 1)


def learn(processes: Processes) -> dict[str, Tensor]:
    """Everything the model holds after its start ("started.") and after some steps, in float64."""
    with seeded_globally(1, "ranks"):
        tokenizer = VQKD(16, 20, 8, SETTINGS.encoder, SETTINGS.encoder_options)
        model, teacher = Distillation(tokenizer, 12, 1).double(), ProjectingTeacher().double()
    step = DistillationStep(model, make_optimizer(model, SETTINGS), teacher, "fp32", CPU)
    share = BATCH // processes.world
    mine = slice(processes.rank * share, (processes.rank + 1) * share)
    batches = torch.rand(STEPS, BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    model.start(batches[0, mine], torch.Generator().manual_seed(3))
    started = {f"started.{name}": value.clone() for name, value in model.state_dict().items()}
    for number, batch in enumerate(batches):
        step(batch[mine], batch[mine], number, 1e-3)
    return {**started, **model.state_dict()}


def learn_on_ranks(folder: Path) -> None:
    with process_group("cpu") as processes:
        save_file(learn(processes), folder / f"learnt-{processes.rank}.safetensors")


def train_on_ranks(folder: Path) -> list[str]:
    """Fingerprints of what this process was given, after training in one go and with a pause."""
    source: Any = TinyImages("tiny", IMAGES, seed=0)
    found = []
    for name, stop in (("whole", None), ("paused", 3)):
        pause_before(stop)
        for _ in range(1 if stop is None else 2):
            try:
                tokenizer = train_vq_kd(source, folder / name, SETTINGS, unreadable=UnreadableImages(), save_every=2)
                found.append(tokenizer.fingerprint)
            except PausedError:
                pause_before(None)
    return found


def train(folder: Path, disturb: Callable[[VQKDTraining], None] = lambda _: None) -> str:
    """A training in FOLDER/tokenizer; the message it ends with, or ""."""
    source: Any = TinyImages("tiny", IMAGES, seed=0)
    settings = dataclasses.replace(SETTINGS, batch_size=6)
    run = VQKDTraining.run

    def disturbed(self: VQKDTraining) -> None:
        if self.processes.rank == self.processes.world - 1:
            disturb(self)
        run(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VQKDTraining, "run", disturbed)
        try:
            train_vq_kd(source, folder / "tokenizer", settings, unreadable=UnreadableImages(), save_every=2, log_every=1)
        except MapetError as error:
            return str(error)
    return ""


def train_and_die(folder: Path) -> str:
    """The same; the last process is killed at step 3."""
    return train(folder, lambda training: at_step(training, 3, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def train_and_stop(folder: Path) -> str:
    """The same; SIGTERM comes to the last process while step number 4 is taken."""
    return train(folder, lambda training: at_step(training, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)))


class PausedError(Exception):
    """Ends all processes of a training at the same step."""


_CALL = DistillationStep.__call__


def pause_before(stop: int | None) -> None:
    def paused(self: DistillationStep, *inputs: Any) -> Any:
        if inputs[2] == stop:
            raise PausedError
        return _CALL(self, *inputs)

    DistillationStep.__call__ = paused  # type: ignore[method-assign]


def stop_one(folder: Path) -> list[Any]:
    """What each process hears when only the last is asked to stop, and when only the last has a NaN."""
    heard: list[Any] = []
    with process_group("cpu") as processes, seeded_globally(1, "ranks"):
        last = processes.rank == processes.world - 1
        model = Distillation(VQKD(16, 20, 8, SETTINGS.encoder, SETTINGS.encoder_options), 12, 1)
        step = DistillationStep(model, make_optimizer(model, SETTINGS), ProjectingTeacher(), "fp32", CPU)
        images = torch.rand(2, 3, 16, 16)
        model.start(images, torch.Generator().manual_seed(3))
        step(images, images, 0, 1e-3)
        heard.append(any_process(last))
        before = digest(model)
        step(images, images * (float("nan") if last else 1.0), 1, 1e-3)
        heard.append(int(step.halted_at))
        heard.append(digest(model) == before)
    return heard


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
