"""Trackers: what their libraries are called with, and what is refused without them."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from mapet.engine.callbacks import LogPoint, RunContext
from mapet.engine.trackers import TRACKERS
from mapet.errors import SettingsError
from mapet.runtime.run_directory import RunDirectory
from tests.command import mapet

LIBRARIES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio", "comet": "comet_ml"}
ENDS = {"wandb": "init().finish", "mlflow": "end_run", "trackio": "finish", "comet": "start().end"}
# Where the entry arrives.
LOGS = {"wandb": "init().log", "mlflow": "log_metrics", "trackio": "log", "comet": "start().log_metrics"}


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_ERROR_REPORTING", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")  # so that they are restored


def log_one(name: str, folder: Path, step: int) -> None:
    """Begins or continues a record, and passes one entry on."""
    tracker = TRACKERS.create(name, {"training.lr": 0.1})
    tracker.begin(RunContext(RunDirectory(folder), torch.nn.Linear(1, 1), torch.device("cpu"), 0, 10, 5))
    tracker.observe(LogPoint(step, 0.1, {"step": step, "loss": 2.5, "bad": float("nan")}))
    tracker.end(finished=True)


@pytest.mark.parametrize("name", LIBRARIES)
def test_entries_arrive_and_nothing_is_sent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = MagicMock()
    monkeypatch.setitem(sys.modules, LIBRARIES[name], library)
    log_one(name, tmp_path / "run", 7)
    (call,) = [each for each in library.mock_calls if each[0] == LOGS[name]]
    assert call.args == ({"loss": 2.5},)
    assert call.kwargs["step"] == 7
    assert ENDS[name] in [each[0] for each in library.mock_calls]  # or what a library keeps in a thread is lost
    if name == "wandb":
        assert library.init.call_args.kwargs["mode"] == "offline"
    if name == "mlflow":
        assert library.set_tracking_uri.call_args.args[0].startswith("file://")
    if name == "comet":
        assert library.start.call_args.kwargs["online"] is False
        options = library.ExperimentConfig.call_args.kwargs
        assert [options[key] for key in ("log_code", "log_git_metadata", "log_git_patch", "auto_output_logging")] == [False] * 4


REAL = """
import sys
from contextlib import closing
from pathlib import Path
from tests.engine.test_trackers import log_one
log_one(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_real_library_keeps_a_run_and_continues_it_without_a_network(name: str, tmp_path: Path) -> None:
    """Each begin has a process of its own, as a run that is continued has."""
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (3, 6):
        command = [sys.executable, "-c", REAL, name, str(folder), str(step)]
        done = subprocess.run(
            command, env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    kept = {
        "wandb": "run/wandb/offline-run-*",
        "mlflow": "run/mlruns/*/*/metrics",
        "trackio": "trackio/*.db",
        "comet": "run/comet/*",
    }
    records = len([*tmp_path.glob(kept[name])])
    assert records == (1 if name in ("mlflow", "trackio") else 2)  # W&B and Comet join two parts when they are uploaded
    if name == "trackio":
        with closing(sqlite3.connect(*tmp_path.glob(kept[name]))) as kept_there:
            assert [*kept_there.execute("select step from metrics order by step")] == [(3,), (6,)]
    if name == "mlflow":
        (losses,) = (folder / "mlruns").glob("*/*/metrics/loss")
        assert [line.split()[-1] for line in losses.read_text().splitlines()] == ["3", "6"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_fails_stops_no_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Its server is down: each kind of warning comes once, and after three entries it is left alone."""
    library: Any = MagicMock()
    monkeypatch.setitem(sys.modules, LIBRARIES[name], library)
    tracker = TRACKERS.create(name, {})
    run = RunContext(RunDirectory(tmp_path), torch.nn.Linear(1, 1), torch.device("cpu"), 0, 10, 5)
    tracker.begin(run)
    parents = {"wandb": library.init(), "mlflow": library, "trackio": library, "comet": library.start()}
    log = LOGS[name].rpartition(".")[2]
    getattr(parents[name], log).side_effect = ConnectionError("no route")
    found = [tracker.observe(LogPoint(step, 0.1, {"step": step, "loss": 1.0})).warnings for step in range(5)]
    assert [[*warnings] for warnings in found] == [[LIBRARIES[name]]] * 2 + [[f"{LIBRARIES[name]} stopped"]] + [[]] * 2
    assert "no route" in found[0][LIBRARIES[name]]
    getattr(parents[name], ENDS[name].rpartition(".")[2]).side_effect = ConnectionError("no route")
    tracker.end(finished=True)
    assert "did not close the record of the run: no route" in capsys.readouterr().err
    tracker.begin(run)
    getattr(parents[name], log).side_effect = None
    assert tracker.observe(LogPoint(5, 0.1, {"step": 5, "loss": 1.0})).warnings == {LIBRARIES[name]: None}


def test_a_library_that_cannot_begin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = MagicMock()
    library.init.side_effect = ValueError("API key is not 40 characters")
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(SettingsError, match=r"wandb cannot begin a record of the run: API key is not 40.*--monitor wandb\."):
        log_one("wandb", tmp_path, 3)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(SettingsError, match=rf"pip install 'mapet\[{name}\]'"):
        TRACKERS.create(name, {}).check(None)


def test_unknown_monitors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("pretrain", "digits", "--recipe", "digits", "--out", str(tmp_path / "run"), "--monitor", "wand") == 2
    assert "no monitor called 'wand'" in capsys.readouterr().err
