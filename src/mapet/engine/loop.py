"""The resumable loop under every training: load, step, log, evaluate, checkpoint, until it is done or stopped."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mapet.data.batch import UnreadableImage
from mapet.data.skipped import UnreadableImages
from mapet.engine.callbacks import Callbacks, Monitor, RunContext
from mapet.engine.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from mapet.engine.log import TrainingLog
from mapet.engine.step import GuardedStep, StepSums
from mapet.engine.warnings import Warnings
from mapet.errors import CheckpointError, DataError, InterruptedRunError, NonFiniteLossError, RequeueError
from mapet.runtime.files import write_json
from mapet.runtime.interrupt import StopRequest
from mapet.runtime.json_files import read_json
from mapet.runtime.processes import Processes, any_process, training_waits
from mapet.runtime.progress import ProgressBar, progress, say
from mapet.runtime.run_directory import RunDirectory

CHECKPOINT_SECONDS = 300.0
_REMEMBERED_STEPS = 100  # whose sample keys a message can name


class StepBatch(Protocol):
    """The loop's view of a batch: the sample keys of its images, and the images that could not be read."""

    @property
    def keys(self) -> list[str]: ...  # noqa: D102
    @property
    def unreadable(self) -> list[UnreadableImage]: ...  # noqa: D102


Batch = TypeVar("Batch", bound=StepBatch)


class Stop(Protocol):
    """Whether the training should stop; see `StopRequest`."""

    @property
    def requested(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class LoopSettings:
    """When a training logs and writes checkpoints.

    Args:
        log_every: Steps between two entries of the log.
        checkpoint_every: Steps between two checkpoints; None where time decides.
        checkpoint_seconds: Seconds between two checkpoints; None where steps decide.
        keep_checkpoints: How many checkpoints stay.
        keeps_checkpoints: Whether the training can be continued at all.
    """

    log_every: int = 10
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = CHECKPOINT_SECONDS
    keep_checkpoints: int = 1
    keeps_checkpoints: bool = True


@dataclass(frozen=True)
class Due:
    """What follows a step."""

    log: bool
    evaluation: bool
    checkpoint: bool


class Training(ABC, Generic[Batch]):
    """Base of all trainings; a subclass defines what is loaded and how a step is taken.

    A subclass sets the attributes below, and last of all `first_step = self.resume()`.

    Args:
        directory: Where the training is written.
        device: Where it computes.
        unreadable: Counts the images that cannot be read.
        when: When it logs and writes checkpoints.
        monitors: Those that observe it.
        processes: This process among all; the first one logs and writes.
        stop: Makes the context in which a request to stop is noted.
        clock: Seconds, for the time between checkpoints.

    Attributes:
        name: Of the training, in messages.
        title: At the progress bar.
        remedy: What usually helps where the loss is not finite, a sentence.
        model: What is trained.
        state: What a checkpoint holds beside the optimizer's state.
        step: Applies the optimizer.
        identity: A hash of everything that the weights depend on.
        total_steps: Of the whole training.
        steps_per_epoch: Gives the epoch of a step.
        first_step: Where this start continues; see `resume`.
    """

    name: str
    title: str
    remedy: str
    model: nn.Module
    state: nn.Module
    step: GuardedStep
    identity: str
    total_steps: int
    steps_per_epoch: int
    first_step: int

    def __init__(
        self,
        directory: RunDirectory,
        device: torch.device,
        unreadable: UnreadableImages,
        when: LoopSettings,
        *,
        monitors: Sequence[Monitor[Any]] = (),
        processes: Processes | None = None,
        stop: Callable[[], AbstractContextManager[Stop]] = StopRequest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_directory, self.device, self.unreadable, self.when = directory, device, unreadable, when
        self.monitors = [*monitors]
        self.processes = processes or Processes()
        self._stop, self._clock = stop, clock
        self._window: dict[str, Tensor] = {}
        self._recent: deque[tuple[int, list[str]]] = deque(maxlen=max(_REMEMBERED_STEPS, when.log_every))

    @abstractmethod
    def batches(self) -> Iterable[Batch]:
        """The batches of every step from `first_step` on."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """The learning rate of step number `step`, at scale 1."""

    @abstractmethod
    def training_step(self, step: int, batch: Batch, lr: float) -> tuple[StepSums, int] | None:
        """Takes step number `step`.

        Returns:
            Its sums and the number of its images; None where nothing can be learned from `batch`.
        """

    def is_evaluated(self, done: int) -> bool:
        """Whether to `evaluate` after `done` steps."""
        return False

    def evaluate(self) -> Mapping[str, float]:
        """Metrics of the weights as they are now, on test images."""
        return {}

    def context(self) -> RunContext:
        """The context of the monitors."""
        return RunContext(self.run_directory, self.model, self.device, self.first_step, self.total_steps, self.steps_per_epoch)

    def other_training(self, checkpoint: Checkpoint) -> str:
        """The message where the checkpoint found is not one of this training."""
        return (
            f"{checkpoint.path} belongs to a {self.name} with other settings, weights or images. Give another --out, or remove "
            f"{self.run_directory.path}."
        )

    @property
    def is_first_process(self) -> bool:
        """Whether this process logs and writes."""
        return self.processes.rank == 0

    def run(self) -> None:
        """Takes all steps that are left.

        Raises:
            NonFiniteLossError: The loss or its gradient is not finite; the weights are those before that step.
            InterruptedRunError: SIGINT, SIGTERM or SIGUSR1 came to any process; a checkpoint was written, unless none are kept.
            DataError: No batch held anything to learn from.
        """
        if self.first_step == self.total_steps:
            return
        log = TrainingLog(self.run_directory, self.first_step, self.steps_per_epoch, self.is_first_process)
        log.restore(self._window, self.device)
        warnings = Warnings(self.run_directory, self.first_step, self.is_first_process)
        callbacks = Callbacks(self.monitors, self.context(), warnings, self._window)
        self.model.train()
        self._saved, steps_taken = self._clock(), 0
        with callbacks, self._stop() as stop, self._progress() as bar, training_waits():
            for step, batch in enumerate(log.timed(self.batches()), self.first_step):
                steps_taken += self._train_on(batch, step, log, callbacks)
                done, stopping = step + 1, any_process(stop.requested)
                if done == self.total_steps and not steps_taken and self.first_step == 0:
                    raise DataError(self._nothing_learned())
                self._follow_up(done, self._due(done, stopping), log, callbacks, bar)
                if bar is not None:
                    bar.advance()
                if stopping and done < self.total_steps:
                    restart = any_process(isinstance(stop, StopRequest) and stop.restart)
                    raise (RequeueError if restart else InterruptedRunError)(self._stopped(done))

    def resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the step to continue from.

        Raises:
            CheckpointError: It belongs to another training.
        """
        keeps = self.when.keeps_checkpoints
        checkpoint = newest_checkpoint(self.run_directory.checkpoints) if keeps else None
        step = 0
        if checkpoint is not None:
            if checkpoint.science_hash != self.identity:
                raise CheckpointError(self.other_training(checkpoint))
            load_checkpoint(checkpoint, self.state, self.step.optimizer)
            self.unreadable.record(self._read_skipped())
            step, self._window = checkpoint.step, checkpoint.window()
            continuing = f"Continuing the {self.name} from step {step} of {self.total_steps}."
            self._say(continuing if step < self.total_steps else f"The {self.name} has already taken all {step} steps.")
        if self.is_first_process:
            self.run_directory.forget_metrics_after(step)
        return step

    def _train_on(self, batch: Batch, step: int, log: TrainingLog, callbacks: Callbacks) -> bool:
        """One step; whether there was anything to learn from."""
        self.unreadable.record_in_all(batch.unreadable)
        self._recent.append((step, batch.keys))
        callbacks.before_step(step, batch)
        result = self.training_step(step, batch, self.learning_rate(step))
        if result is not None:
            log.add(*result)
        return result is not None

    def _due(self, done: int, stopping: bool) -> Due:
        """What follows `done` steps, the same in all processes."""
        settings, last, evaluation = self.when, done == self.total_steps, self.is_evaluated(done)
        planned = last or (settings.checkpoint_every is not None and done % settings.checkpoint_every == 0)
        seconds = settings.checkpoint_seconds
        late = seconds is not None and any_process(self._clock() - self._saved >= seconds)
        return Due(planned or evaluation or done % settings.log_every == 0, evaluation, planned or stopping or late)

    def _follow_up(self, done: int, due: Due, log: TrainingLog, callbacks: Callbacks, bar: ProgressBar | None) -> None:
        """Logs, evaluates and writes a checkpoint after `done` steps, where that is due."""
        if due.log or due.checkpoint or self.device.type == "cpu":
            self._check_finite()
        if due.log:
            log.write(done, self.learning_rate(done - 1), bar, callbacks)
        if due.evaluation:
            log.write_evaluation(done, self.evaluate())
        if due.checkpoint:
            self._save(done, log.window() | callbacks.state())
            self._saved = self._clock()

    def _save(self, done: int, window: dict[str, Tensor]) -> None:
        if not self.when.keeps_checkpoints:
            return
        if self.is_first_process:
            write_json(self._skipped, [asdict(image) for image in self.unreadable.images])
        folder, keep, optimizer = self.run_directory.checkpoints, self.when.keep_checkpoints, self.step.optimizer
        save_checkpoint(folder, done, self.identity, self.state, optimizer, keep, window, self.processes)

    @property
    def _skipped(self) -> Path:
        """Where the images are listed that could not be read, for the next start."""
        return self.run_directory.path / "unreadable.json"

    def _read_skipped(self) -> list[UnreadableImage]:
        if not self._skipped.is_file():
            return []
        try:
            return [UnreadableImage(**image) for image in read_json(self._skipped, list)]
        except TypeError:
            raise CheckpointError(
                f"{self._skipped} is damaged. Remove it to go on; images skipped before are not counted then."
            ) from None

    def _check_finite(self) -> None:
        step = int(self.step.halted_at)
        if step < 0:
            return
        keys = dict(self._recent).get(step, [])
        path, listed = self.run_directory.path / "nonfinite.json", ""
        if self.when.keeps_checkpoints and self.is_first_process:
            write_json(path, {"step": step, "sample_keys": keys})
            listed = f" (all {len(keys)} in {path})"
        raise NonFiniteLossError(
            f"The loss or its gradient is not finite at step {step} of the {self.name}. The optimizer did not move; the last "
            f"checkpoint is intact. Sample keys of that batch: {', '.join(keys[:4])} ...{listed}. {self.remedy}"
        )

    def _progress(self) -> AbstractContextManager[ProgressBar | None]:
        """A bar in the first process, nothing in the others."""
        return progress(self.title, self.total_steps, self.first_step) if self.is_first_process else nullcontext()

    def _say(self, message: str) -> None:
        if self.is_first_process:
            say(message)

    def _stopped(self, done: int) -> str:
        resumable = self.when.keeps_checkpoints
        way_on = "The same command continues from there." if resumable else "Nothing was kept: give --out FOLDER."
        return f"Stopped after step {done} of the {self.name}. {way_on}"

    def _nothing_learned(self) -> str:
        return (
            f"No batch of the {self.name} held anything to learn from, so that no step was taken: its images cannot be read, or "
            "all their pixels are ignored. Check the images."
        )
