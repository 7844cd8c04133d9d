"""Trackers: what their libraries are called with, and what is refused without them."""

from __future__ import annotations

import sys
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
# Where the entry arrives.
LOGS = {"wandb": "init().log", "mlflow": "log_metrics", "trackio": "log", "comet": "OfflineExperiment().log_metrics"}


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_ERROR_REPORTING", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")  # so that they are restored


@pytest.mark.parametrize("name", LIBRARIES)
def test_entries_arrive_and_nothing_is_sent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = MagicMock()
    monkeypatch.setitem(sys.modules, LIBRARIES[name], library)
    tracker = TRACKERS.create(name, {"training.lr": 0.1})
    model = torch.nn.Linear(1, 1)
    tracker.begin(RunContext(RunDirectory(tmp_path / "run"), model, torch.device("cpu"), 0, 10, 5))
    tracker.observe(LogPoint(7, 0.1, {"step": 7, "loss": 2.5, "bad": float("nan")}))
    (call,) = [each for each in library.mock_calls if each[0] == LOGS[name]]
    assert call.args == ({"loss": 2.5},)
    assert call.kwargs["step"] == 7
    if name == "wandb":
        assert library.init.call_args.kwargs["mode"] == "offline"
    if name == "mlflow":
        assert library.set_tracking_uri.call_args.args[0].startswith("file://")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_before_any_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(SettingsError, match=rf"pip install 'mapet\[{name}\]'"):
        TRACKERS.create(name, {}).check(None)


def test_unknown_monitors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("pretrain", "digits", "--recipe", "digits", "--out", str(tmp_path / "run"), "--monitor", "wand") == 2
    assert "no monitor called 'wand'" in capsys.readouterr().err
