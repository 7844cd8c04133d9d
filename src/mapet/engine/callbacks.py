"""Monitors: whenever an entry is logged, they add figures to it, and warnings in words.

A monitor only observes. It draws no random number that training uses, changes no weight and no mode, and so leaves a training
bitwise as it is without it. Training does not depend on monitors; the caller of a training passes them. A monitor
gets a frozen `RunContext`, and never the training itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mapet.data.source import ImageSource
from mapet.engine.parallel import whole_weights
from mapet.engine.warnings import Warnings
from mapet.runtime.run_directory import RunDirectory


@dataclass(frozen=True)
class RunContext:
    """The part of a training that a monitor can read.

    Args:
        directory: Where the training is written.
        model: What is trained.
        device: Where it is.
        first_step: Where this start continues.
        total_steps: Of the whole training.
        steps_per_epoch: Gives the epoch of a step.
    """

    directory: RunDirectory
    model: nn.Module
    device: torch.device
    first_step: int
    total_steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class LogPoint:
    """When a monitor observes.

    Args:
        step: Optimizer steps taken.
        lr: Learning rate of the last one.
        entry: What is logged about the steps since the last entry: "loss", "gradient_norm", ...; see `TrainingLog`.
    """

    step: int
    lr: float
    entry: Mapping[str, float]


@dataclass(frozen=True)
class Observation:
    """What a monitor found.

    Args:
        scalars: Are added to the entry.
        warnings: Name of a possible fault to the words that warn of it, or None where it was checked for and is absent.
        note: Words for the progress bar.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str | None] = field(default_factory=dict)
    note: str = ""


Context = TypeVar("Context", bound=RunContext, contravariant=True)


class Monitor(Generic[Context]):
    """Observes a training; a subclass overrides what it needs."""

    def check(self, source: ImageSource) -> None:
        """Refuses images that it cannot work with, before any work was done; raises a MapetError."""

    def begin(self, run: Context) -> None:
        """Called before the first step of every start."""

    def before_step(self, step: int, batch: Any) -> None:
        """Called before step number `step` (from 0) on `batch`; must not wait for the device."""

    def observe(self, point: LogPoint) -> Observation:
        """Called whenever an entry is about to be logged."""
        return Observation()

    def state(self) -> dict[str, Tensor]:
        """What it has gathered so far and cannot find anywhere else; kept in every checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Called after `begin` with the `state` of the checkpoint that a training continues from, if it has one."""

    def end(self, finished: bool) -> None:
        """Called when this start of the training ends, also by an error; `finished` where all steps are taken."""


class Callbacks:
    """Calls all monitors, and passes their warnings on.

    Args:
        monitors: Those that observe.
        run: The context of the run.
        warnings: Where their warnings are written.
        tensors: What the checkpoint holds that the training continues from: their `state`, among others.
    """

    def __init__(
        self, monitors: Sequence[Monitor[Any]], run: RunContext, warnings: Warnings, tensors: Mapping[str, Tensor]
    ) -> None:
        self._monitors, self._model, self._warnings = monitors, run.model, warnings
        with ExitStack() as begun:  # ends them if a later one cannot begin
            for monitor in monitors:
                monitor.begin(run)
                begun.callback(monitor.end, False)
                prefix = _prefix(monitor)
                if state := {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}:
                    monitor.restore(state)
            begun.pop_all()

    def __enter__(self) -> Callbacks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for monitor in self._monitors:
            monitor.end(kind is None)

    def state(self) -> dict[str, Tensor]:
        """What all monitors have gathered, for a checkpoint."""
        return {f"{_prefix(monitor)}{name}": value for monitor in self._monitors for name, value in monitor.state().items()}

    def before_step(self, step: int, batch: Any) -> None:
        """Announces the next step to all monitors."""
        for monitor in self._monitors:
            monitor.before_step(step, batch)

    def observe(self, point: LogPoint) -> tuple[dict[str, float], list[str]]:
        """The scalars of all monitors and their notes; their warnings are printed and written on the way."""
        with whole_weights(self._model):
            observations = [monitor.observe(point) for monitor in self._monitors]
        for observation in observations:
            for name, message in observation.warnings.items():
                self._warnings.update(point.step, name, message)
        scalars = {name: value for observation in observations for name, value in observation.scalars.items()}
        return scalars, [observation.note for observation in observations if observation.note]


def _prefix(monitor: Monitor[Any]) -> str:
    """How the names of its state begin in a checkpoint."""
    return f"monitors.{type(monitor).__name__}."


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode inside the block; every part of it as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
