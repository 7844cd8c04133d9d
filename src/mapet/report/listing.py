"""Past and running pre-trainings below a folder, a line each. Their plain files are the truth; nothing is kept besides."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mapet.errors import CheckpointError, SettingsError, nearest
from mapet.report.reading import ReportedRun
from mapet.runtime.progress import format_seconds
from mapet.runtime.run_directory import RunDirectory

HEADINGS = ("run", "state", "objective", "steps", "loss", "training", "evaluations", "data")
_SILENT_FOR = 600.0  # seconds without a line in the log, after which a run counts as stopped


@dataclass(frozen=True)
class Listed:
    """What is known of one run.

    Args:
        path: Its folder.
        state: "finished", "running", "stopped", "failed", or "damaged".
        objective: Its name.
        data: Where the images were.
        steps: Taken so far.
        loss: The last one that was logged; NaN if there is none.
        seconds: Of training.
        evaluations: Title of a protocol to the figure that counts, 0 to 1.
        science: Every setting by its dotted name.
    """

    path: str
    state: str
    objective: str = ""
    data: str = ""
    steps: int = 0
    loss: float = math.nan
    seconds: float = 0.0
    evaluations: dict[str, float] = field(default_factory=dict)
    science: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For programs; no loss is null."""
        return {**asdict(self), "loss": None if math.isnan(self.loss) else self.loss}

    def cells(self, folder: Path) -> list[str]:
        """What stands in its line."""
        figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.evaluations.items())
        loss = "" if math.isnan(self.loss) else f"{self.loss:.3f}"
        path = os.path.relpath(self.path, folder)
        return [path, self.state, self.objective, f"{self.steps:,}", loss, format_seconds(self.seconds), figures, self.data]


def list_runs(folder: Path) -> list[Listed]:
    """All runs in `folder` and below it, in the order of their paths.

    Raises:
        SettingsError: There is no such folder.
    """
    if not folder.is_dir():
        raise SettingsError(f"There is no folder {folder}. Give one that holds run directories.")
    return [_listed(path) for path in _run_folders(folder)]


def selected(runs: Sequence[Listed], overrides: Mapping[str, Any]) -> list[Listed]:
    """Those whose settings are `overrides`, dotted name to value.

    Raises:
        SettingsError: No run has a setting of that name.
    """
    names = sorted({name for run in runs for name in run.science})
    for name in overrides:
        if names and name not in names:
            raise SettingsError(f"No run has a setting '{name}'. {nearest(name, names)}")
    return [run for run in runs if all(run.science.get(name) == value for name, value in overrides.items())]


def table(runs: Sequence[Listed], folder: Path) -> str:
    """The lines of `runs` under headings, in columns."""
    return _columns([[*HEADINGS], *(run.cells(folder) for run in runs)])


def differences(runs: Sequence[Listed], folder: Path) -> str:
    """The settings in which `runs` differ, a column each, beside loss and evaluations; "-" where a run has no such setting."""
    names = dict.fromkeys(name for run in runs for name in run.science)
    differing = [name for name in names if len({repr(run.science.get(name)) for run in runs}) > 1]
    rows = [["run", *differing, "loss", "evaluations"]]
    for run in runs:
        cells = run.cells(folder)
        rows.append([cells[0], *(str(run.science.get(name, "-")) for name in differing), cells[4], cells[6]])
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _run_folders(folder: Path) -> list[Path]:
    """Folders with the files of a run; what lies inside a run is not searched."""
    run_folders = []
    for path, folders, files in os.walk(folder):
        if {"config.json", "environment.json"} <= {*files}:
            run_folders.append(Path(path))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return run_folders


def _listed(path: Path) -> Listed:
    try:
        run = ReportedRun(RunDirectory.existing(path), path.name)
        figures = {_title(result.protocol, result.pool): result.value for result in run.results}
        loss = run.metrics[-1]["loss"] if run.metrics else math.nan
        return Listed(
            str(path), state_of(run), run.objective_title, run.data, run.steps, loss, run.training_seconds, figures, run.science
        )
    except CheckpointError:
        return Listed(str(path), "damaged")


def state_of(run: ReportedRun) -> str:
    """In a word: finished, failed (the loss was not finite), running, or stopped."""
    if run.run.backbone.is_dir():
        return "finished"
    log, failure = run.run.metrics, run.run.path / "nonfinite.json"
    if failure.is_file() and not (log.is_file() and log.stat().st_mtime > failure.stat().st_mtime):
        return "failed"
    return "running" if log.is_file() and time.time() - log.stat().st_mtime < _SILENT_FOR else "stopped"


def _title(protocol: Mapping[str, Any], pool: str | None) -> str:
    return f"{protocol.get('name')} ({pool})" if pool else str(protocol.get("name"))
