"""Monitors that pass what is logged on to a tracker's own library. None is used unless the user names it.

Each keeps its records on this machine, unless the user configured the library to send them (a key or a server in its own
environment variables).
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapet.data.source import ImageSource
from mapet.engine.callbacks import LogPoint, Monitor, Observation, RunContext
from mapet.errors import MapetError, SettingsError
from mapet.registry import Registry
from mapet.runtime.processes import errors_in_all
from mapet.runtime.progress import say
from mapet.runtime.rank import this_process_is_first

_PROJECT = "mapet"
_COMET_ADDS = (  # of its own accord
    "log_code",
    "log_git_metadata",
    "log_git_patch",
    "log_env_details",
    "log_graph",
    "parse_args",
    "auto_output_logging",
    "auto_param_logging",
    "auto_metric_logging",
    "auto_log_co2",
)
_PATIENCE = 3  # entries in a row that a library may refuse


@dataclass(frozen=True)
class Record:
    """The record of a run in a library.

    Args:
        log: Takes an entry and its step.
        finish: Waits until everything is kept; its argument tells whether the run has taken all steps.
    """

    log: Callable[[dict[str, float], int], object]
    finish: Callable[[bool], object]


class Tracker(Monitor[RunContext], ABC):
    """Passes every entry of the log on. What the library cannot take is missing there, and the training goes on.

    Args:
        config: The settings of the run by name.
    """

    library, extra = "", ""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config, self._record, self._refused = dict(config), None, 0

    def check(self, source: ImageSource) -> None:
        """Refuses to begin without the library."""
        self._imported()

    def begin(self, run: RunContext) -> None:
        """Begins or continues the record of this run, in the first process; refuses to train where the library cannot."""
        with errors_in_all():
            if this_process_is_first():
                self._record, self._refused = self._begun(run.directory.path.resolve()), 0

    def observe(self, point: LogPoint) -> Observation:
        """Passes an entry on."""
        if self._record is None or self._refused >= _PATIENCE:
            return Observation()
        numbers = {name: float(value) for name, value in point.entry.items() if name != "step" and math.isfinite(value)}
        try:
            self._record.log(numbers, point.step)
        except Exception as error:  # of any kind: a server that is down stops no training
            self._refused += 1
            if self._refused < _PATIENCE:
                return Observation(warnings={self.library: f"{self.library} did not take an entry of the log: {error}."})
            return Observation(
                warnings={f"{self.library} stopped": f"{self.library} gets no more entries: it did not take {_PATIENCE} in a row."}
            )
        self._refused = 0
        return Observation(warnings={self.library: None})

    def end(self, finished: bool) -> None:
        """Closes the record, which the next start continues."""
        record, self._record = self._record, None
        if record is not None:
            try:
                record.finish(finished)
            except Exception as error:
                say(f"{self.library} did not close the record of the run: {error}. metrics.jsonl has all entries.")

    @abstractmethod
    def _start(self, library: Any, folder: Path) -> Record:
        """Begins the record of the run in `folder`, or continues it."""

    def _begun(self, folder: Path) -> Record:
        try:
            return self._start(self._imported(), folder)
        except MapetError:
            raise
        except Exception as error:  # of any kind: a key that is wrong, a server that does not answer
            raise SettingsError(
                f"{self.library} cannot begin a record of the run: {error}. Mend its settings, or leave out --monitor {self.extra}."
            ) from error

    def _imported(self) -> Any:
        try:
            return importlib.import_module(self.library)
        except ImportError as error:
            raise SettingsError(
                f"The monitor '{self.extra}' needs {self.library}: {error}. Run: pip install 'mapet[{self.extra}]'"
            ) from None


class WeightsAndBiases(Tracker):
    """Offline, in the run directory, unless WANDB_API_KEY or WANDB_MODE is set. Neither code nor terminal output goes there."""

    library = extra = "wandb"

    def _start(self, library: Any, folder: Path) -> Record:
        offline = not {"WANDB_API_KEY", "WANDB_MODE"} & os.environ.keys()
        if offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        options: dict[str, Any] = {"mode": "offline"} if offline else {}
        options["settings"] = library.Settings(disable_git=True, disable_code=True, console="off")
        run = library.init(
            project=_PROJECT, name=folder.name, id=_key(folder), resume="allow", dir=str(folder), config=self._config, **options
        )
        return Record(lambda entry, step: run.log(entry, step=step), lambda _: run.finish())


class Mlflow(Tracker):
    """In files of the run directory, unless MLFLOW_TRACKING_URI is set."""

    library = extra = "mlflow"

    def _start(self, library: Any, folder: Path) -> Record:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            library.set_tracking_uri((folder / "mlruns").as_uri())
        library.set_experiment(_PROJECT)
        mine = {"mapet_run": _key(folder)}
        runs = library.search_runs(filter_string=f"tags.mapet_run = '{mine['mapet_run']}'", output_format="list")
        run = library.start_run(run_id=runs[0].info.run_id) if runs else library.start_run(run_name=folder.name, tags=mine)
        library.log_params({name: str(value)[:500] for name, value in self._config.items()})
        return Record(
            lambda entry, step: library.log_metrics(entry, step=step, run_id=run.info.run_id),
            lambda finished: library.end_run("FINISHED" if finished else "KILLED"),
        )

    def _imported(self) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        return super()._imported()


class Trackio(Tracker):
    """In Trackio's own folder on this machine (TRACKIO_DIR)."""

    library = extra = "trackio"

    def _start(self, library: Any, folder: Path) -> Record:
        library.init(project=_PROJECT, name=folder.name, config=self._config, resume="allow", embed=False)
        return Record(lambda entry, step: library.log(entry, step=step), lambda _: library.finish())


class Comet(Tracker):
    """Offline, in the run directory, unless COMET_API_KEY is set. Only the settings and the log go there."""

    library, extra = "comet_ml", "comet"

    def _start(self, library: Any, folder: Path) -> Record:
        offline_folder = folder / "comet"
        offline_folder.mkdir(parents=True, exist_ok=True)
        config = library.ExperimentConfig(
            name=folder.name, offline_directory=str(offline_folder), **dict.fromkeys(_COMET_ADDS, False)
        )
        experiment = library.start(
            project_name=_PROJECT, experiment_key=_key(folder), online="COMET_API_KEY" in os.environ, experiment_config=config
        )
        experiment.log_parameters(self._config)
        return Record(lambda entry, step: experiment.log_metrics(entry, step=step), lambda _: experiment.end())


TRACKERS: Registry[type[Tracker]] = Registry(
    "monitor",
    {
        "wandb": "mapet.engine.trackers:WeightsAndBiases",
        "mlflow": "mapet.engine.trackers:Mlflow",
        "trackio": "mapet.engine.trackers:Trackio",
        "comet": "mapet.engine.trackers:Comet",
    },
    "mapet.engine.trackers:Tracker",
)


def _key(folder: Path) -> str:
    """Names a run for as long as it stays in its folder, so that a continued run continues its record."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:32]
