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
from pathlib import Path
from typing import Any

from mapet.data.source import ImageSource
from mapet.engine.callbacks import LogPoint, Monitor, Observation, RunContext
from mapet.errors import SettingsError
from mapet.registry import Registry
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
Log = Callable[[dict[str, float], int], object]


class Tracker(Monitor[RunContext], ABC):
    """Passes every entry of the log on.

    Args:
        config: The settings of the run by name.
    """

    library, extra = "", ""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config, self._log = dict(config), None

    def check(self, source: ImageSource) -> None:
        """Refuses to begin without the library."""
        self._imported()

    def begin(self, run: RunContext) -> None:
        """Begins or continues the record of this run, in the first process."""
        if this_process_is_first():
            self._log = self._start(self._imported(), run.directory.path.resolve())

    def observe(self, point: LogPoint) -> Observation:
        """Passes an entry on."""
        if self._log is not None:
            numbers = {name: float(value) for name, value in point.entry.items() if name != "step" and math.isfinite(value)}
            self._log(numbers, point.step)
        return Observation()

    @abstractmethod
    def _start(self, library: Any, folder: Path) -> Log:
        """Begins the record of the run in `folder`; what it returns is called with every entry and its step."""

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

    def _start(self, library: Any, folder: Path) -> Log:
        offline = not {"WANDB_API_KEY", "WANDB_MODE"} & os.environ.keys()
        if offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        options: dict[str, Any] = {"mode": "offline"} if offline else {}
        options["settings"] = library.Settings(disable_git=True, disable_code=True, console="off")
        run = library.init(
            project=_PROJECT, name=folder.name, id=_key(folder), resume="allow", dir=str(folder), config=self._config, **options
        )
        return lambda entry, step: run.log(entry, step=step)


class Mlflow(Tracker):
    """In files of the run directory, unless MLFLOW_TRACKING_URI is set."""

    library = extra = "mlflow"

    def _start(self, library: Any, folder: Path) -> Log:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            library.set_tracking_uri((folder / "mlruns").as_uri())
        library.set_experiment(_PROJECT)
        mine = {"mapet_run": _key(folder)}
        begun = library.search_runs(filter_string=f"tags.mapet_run = '{mine['mapet_run']}'", output_format="list")
        run = library.start_run(run_id=begun[0].info.run_id) if begun else library.start_run(run_name=folder.name, tags=mine)
        library.log_params({name: str(value)[:500] for name, value in self._config.items()})
        return lambda entry, step: library.log_metrics(entry, step=step, run_id=run.info.run_id)

    def _imported(self) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        return super()._imported()


class Trackio(Tracker):
    """In Trackio's own folder on this machine (TRACKIO_DIR)."""

    library = extra = "trackio"

    def _start(self, library: Any, folder: Path) -> Log:
        library.init(project=_PROJECT, name=folder.name, config=self._config, resume="allow", embed=False)
        return lambda entry, step: library.log(entry, step=step)


class Comet(Tracker):
    """Offline, in the run directory, unless COMET_API_KEY is set. Only the settings and the log go there."""

    library, extra = "comet_ml", "comet"

    def _start(self, library: Any, folder: Path) -> Log:
        kept = folder / "comet"
        kept.mkdir(parents=True, exist_ok=True)
        config = library.ExperimentConfig(name=folder.name, offline_directory=str(kept), **dict.fromkeys(_COMET_ADDS, False))
        experiment = library.start(
            project_name=_PROJECT, experiment_key=_key(folder), online="COMET_API_KEY" in os.environ, experiment_config=config
        )
        experiment.log_parameters(self._config)
        return lambda entry, step: experiment.log_metrics(entry, step=step)


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
