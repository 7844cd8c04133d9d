"""The loop of a training on labels: load, step, log, look, checkpoint, from wherever its folder left off."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from mapet.data.loader import LoadedBatch, UnreadableImage
from mapet.errors import CheckpointError, DataError, InterruptedRunError, NonFiniteLossError
from mapet.evaluation.subject import Subject
from mapet.evaluation.supervised.log import SupervisedLog
from mapet.runtime.files import write_json
from mapet.runtime.interrupt import StopRequest
from mapet.runtime.json_files import read_json
from mapet.runtime.progress import progress, say
from mapet.runtime.run_directory import RunDirectory
from mapet.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from mapet.training.guard import GuardedStep
from mapet.training.step import StepSums

LOG_EVERY = 10  # steps
CHECKPOINT_SECONDS = 300.0


class SupervisedTraining(ABC):
    """Base of all trainings on labels.

    Args:
        subject: The backbone, which stays as it is, and the images.
        folder: For metrics.jsonl and TensorBoard's events, and for checkpoints if the subject has a folder.

    Attributes:
        called: What it is, in messages.
        remedy: What usually helps where the loss is not finite.
        model: What is trained.
        state: What a checkpoint holds beside the optimizer's state.
        step: Applies the optimizer.
        hash: Names everything that the weights depend on.
        total_steps: Of the whole training.
        steps_per_epoch: To give the epoch of a step.
        first_step: Where this start goes on; see `resume`.
        uses_backbone: Whether it begins with the backbone's weights.
    """

    called: str
    remedy: ClassVar[str]
    model: nn.Module
    state: nn.Module
    step: GuardedStep
    hash: str
    total_steps: int
    steps_per_epoch: int
    first_step: int
    uses_backbone: bool = True

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.run_directory, self.keeps = RunDirectory(folder), subject.folder is not None
        self._skipped = folder / "unreadable.json"
        self._window: dict[str, Tensor] = {}
        self._taken = 0
        self._recent: deque[tuple[int, list[str]]] = deque(maxlen=LOG_EVERY)

    @abstractmethod
    def load(self) -> Iterable[LoadedBatch]:
        """The batches of every step that is left."""

    @abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate of step number `step`, at scale 1."""

    @abstractmethod
    def take(self, step: int, batch: LoadedBatch, rate: float) -> StepSums | None:
        """Takes step number `step`, or None where the batch is good for nothing."""

    def is_look(self, done: int) -> bool:
        """Whether to `look` at the test images after `done` steps."""
        return False

    def look(self) -> dict[str, float]:
        """Figures of the weights as they are now."""
        return {}

    def train(self) -> None:
        """Takes all steps that are left.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT or SIGTERM came; a checkpoint was written if there is a folder.
        """
        log = SupervisedLog(self.run_directory, self.first_step, self.steps_per_epoch)
        log.restore(self._window, self.subject.device)
        title = f"{self.called.capitalize()}, {self.subject.title}"
        saved = time.monotonic()
        if self.uses_backbone and self.first_step == 0:
            self.subject.check_finite()
        self.model.train()
        with StopRequest() as stop, progress(title, self.total_steps, self.first_step) as bar:
            for step, batch in enumerate(log.timed(self.load()), self.first_step):
                self._take(step, batch, log)
                done, stopping = step + 1, stop.requested
                last, look = done == self.total_steps, self.is_look(done)
                if last and self.first_step == 0 and not self._taken:
                    raise DataError(
                        f"No batch of the {self.called} held anything to learn from, so that no step was taken: its images cannot "
                        "be read, or all their pixels are ignored. Check the images."
                    )
                save = last or stopping or time.monotonic() - saved >= CHECKPOINT_SECONDS
                write = last or look or done % LOG_EVERY == 0
                if write or save or self.subject.device.type == "cpu":
                    self._check_finite()
                if write:
                    log.record(done, self.rate(step), bar)
                if look:
                    log.record_figures(done, self.look())
                if save:
                    self._save(done, log.window())
                    saved = time.monotonic()
                bar.advance()
                if stopping and not last:
                    way_out = "The same command continues from there." if self.keeps else "Nothing was kept: give --out FOLDER."
                    raise InterruptedRunError(f"Stopped after step {done} of the {self.called}. {way_out}")

    def resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the step to go on with.

        Raises:
            CheckpointError: It belongs to another training.
        """
        checkpoint = newest_checkpoint(self.run_directory.checkpoints) if self.keeps else None
        step = 0
        if checkpoint is not None:
            if checkpoint.science_hash != self.hash:
                raise CheckpointError(
                    f"{checkpoint.path} belongs to a {self.called} of another backbone, on other images or labels, or with other "
                    f"settings. Give another --out, or remove {self.run_directory.path}."
                )
            load_checkpoint(checkpoint, self.state, self.step.optimizer)
            if self._skipped.is_file():
                self.subject.unreadable.record(self._read_skipped())
            step, self._window = checkpoint.step, checkpoint.window()
            begun = f"Continuing the {self.called} from step {step} of {self.total_steps}."
            say(begun if step < self.total_steps else f"The {self.called} is done already, all {step} steps of it.")
        self.run_directory.forget_metrics_after(step)
        return step

    def _read_skipped(self) -> list[UnreadableImage]:
        try:
            return [UnreadableImage(**image) for image in read_json(self._skipped)]
        except TypeError:
            raise CheckpointError(
                f"{self._skipped} is damaged. Remove it to go on; images skipped before are not counted then."
            ) from None

    def _take(self, step: int, batch: LoadedBatch, log: SupervisedLog) -> None:
        self.subject.unreadable.record(batch.unreadable)
        self._recent.append((step, batch.keys))
        sums = self.take(step, batch, self.rate(step))
        if sums is not None:
            self._taken += 1
            log.add(sums, len(batch.images))

    def _save(self, done: int, window: dict[str, Tensor]) -> None:
        if self.keeps:
            write_json(self._skipped, [asdict(image) for image in self.subject.unreadable.images])
            save_checkpoint(self.run_directory.checkpoints, done, self.hash, self.state, self.step.optimizer, keep=1, window=window)

    def _check_finite(self) -> None:
        step = int(self.step.halted_at)
        if step >= 0:
            keys = dict(self._recent).get(step, [])
            raise NonFiniteLossError(
                f"The loss or its gradient is not finite at step {step} of the {self.called}. The optimizer did not move. Sample "
                f"keys of that batch: {', '.join(keys[:4])} ... {self.remedy}"
            )
