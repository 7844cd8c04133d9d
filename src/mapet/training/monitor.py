"""Those who watch a run: asked whenever an entry is logged, they give figures for it, and warnings in words.

A monitor only looks. It draws no random number that training uses, changes no weight and no mode, and so leaves a run bitwise as it
is without it. Training knows nothing of what a monitor does; whoever starts a run hands monitors over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mapet.data.sources import ImageSource
from mapet.runtime.files import write_text
from mapet.runtime.jsonl import Lines, append_line, is_step, read_lines
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from mapet.training.trainer import Trainer


@dataclass(frozen=True)
class Moment:
    """When a monitor is asked.

    Args:
        step: Optimizer steps taken.
        rate: Learning rate of the last one.
        entry: What is logged about the steps since the last entry: "loss", "gradient_norm", ...; see `TrainingLog`.
    """

    step: int
    rate: float
    entry: Mapping[str, float]


@dataclass(frozen=True)
class Observation:
    """What a monitor found.

    Args:
        scalars: Go into the entry.
        verdicts: Name of a possible fault to the words that warn of it, or None where it was looked for and is not there.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, str | None] = field(default_factory=dict)


class Monitor:
    """Watches a run; a subclass overrides what it needs."""

    def check(self, source: ImageSource) -> None:
        """Refuses images that it cannot work with, before any work was done; raises a MapetError."""

    def begin(self, trainer: Trainer) -> None:
        """Called before the first step of every start."""

    def before_step(self, step: int, token_ids: Tensor | None) -> None:
        """Called before step number `step` (from 0) on tokens (B, N_p); must not wait for the device."""

    def observe(self, moment: Moment) -> Observation:
        """Called whenever an entry is about to be logged."""
        return Observation()

    def state(self) -> dict[str, Tensor]:
        """What it has gathered on the way and cannot find anywhere else; kept in every checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Called behind `begin` with the `state` of the checkpoint that a run continues from, if it has one."""


class Watch:
    """Asks all monitors, and passes their warnings on: each is said once in a run, and kept in warnings.jsonl.

    Args:
        monitors: Those who watch.
        trainer: The run that they watch.
    """

    def __init__(self, monitors: Sequence[Monitor], trainer: Trainer) -> None:
        self.monitors, self.run = monitors, trainer.run_directory
        lines = warning_lines(self.run)
        if remark := lines.remark():
            say(remark)
        kept = [line for line in lines.entries if line["step"] <= trainer.first_step]
        if warnings_file(self.run).is_file():
            write_text(warnings_file(self.run), "".join(json.dumps(line) + "\n" for line in kept))
        self._said = {line["name"] for line in kept}
        self._standing = {line["name"] for line in standing_warnings(kept)}
        self._withdrawn = {line["name"] for line in kept if line["message"] is None}
        for monitor in monitors:
            monitor.begin(trainer)
            start = _state_of(monitor)
            if state := {name.removeprefix(start): found for name, found in trainer.window.items() if name.startswith(start)}:
                monitor.restore(state)

    def state(self) -> dict[str, Tensor]:
        """What all monitors have gathered, for a checkpoint."""
        return {f"{_state_of(monitor)}{name}": found for monitor in self.monitors for name, found in monitor.state().items()}

    def before_step(self, step: int, token_ids: Tensor | None) -> None:
        """Tells all monitors which step comes."""
        for monitor in self.monitors:
            monitor.before_step(step, token_ids)

    def observe(self, moment: Moment) -> dict[str, float]:
        """The scalars of all monitors; their warnings are said and written on the way."""
        scalars: dict[str, float] = {}
        for monitor in self.monitors:
            found = monitor.observe(moment)
            scalars |= found.scalars
            for name, message in found.verdicts.items():
                self._judge(moment.step, name, message)
        return scalars

    def _judge(self, step: int, name: str, message: str | None) -> None:
        again = name in self._withdrawn and name not in self._standing
        if message is not None and (name not in self._said or again):
            say(f"WARNING at step {step}: {message}")
            self._keep({"step": step, "name": name, "message": message})
            self._said.add(name)
            self._standing.add(name)
        elif message is None and name in self._standing:
            say(f"At step {step} the warning '{name}' no longer holds.")
            self._keep({"step": step, "name": name, "message": None})
            self._standing.remove(name)
            self._withdrawn.add(name)

    def _keep(self, line: dict[str, Any]) -> None:
        append_line(warnings_file(self.run), line)


def _state_of(monitor: Monitor) -> str:
    """How the names of its state begin in a checkpoint."""
    return f"monitors.{type(monitor).__name__}."


def warnings_file(run: RunDirectory) -> Path:
    """Where the warnings of a run are kept, one a line; a line without a message withdraws the one of its name."""
    return run.path / "warnings.jsonl"


def read_warnings(run: RunDirectory) -> list[dict[str, Any]]:
    """The entries of warnings.jsonl: step, name, message; a line that is cut off or damaged is left out."""
    return warning_lines(run).entries


def warning_lines(run: RunDirectory) -> Lines:
    """The same, with how many lines are no entries."""
    return read_lines(warnings_file(run), _is_warning)


def _is_warning(line: dict[str, Any]) -> bool:
    texts = isinstance(line.get("name"), str) and isinstance(line.get("message", 0), str | None)
    return texts and is_step(line.get("step"))


def standing_warnings(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were not withdrawn later."""
    standing: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["message"] is None:
            standing.pop(line["name"], None)
        else:
            standing[line["name"]] = line
    return [*standing.values()]


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
