"""`mapet runs`: what is found below a folder, and what each line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mapet.errors import SettingsError
from mapet.report.listing import list_runs, selected, table
from mapet.runtime.run_directory import RunDirectory
from tests.command import mapet
from tests.tiny import tiny_settings, tiny_store, tiny_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stopped runs, one of them deeper, a finished one, a damaged one, and folders that are none."""
    from mapet.runtime.files import write_json

    folder = tmp_path_factory.mktemp("runs")
    store = tiny_store(folder / "store")
    for name, steps in (("first", 2), ("deep/er/second", 3)):
        settings = tiny_settings(training__steps=steps, training__warmup_steps=1)
        trainer = tiny_trainer(folder / name, store, settings, monitors=[])
        write_json(
            trainer.run_directory.config,
            {"data": "somewhere", "science": settings.science, "science_hash": settings.science_hash, "mechanics": {}},
        )
        trainer.run_directory.record_environment()
        trainer.run()
    RunDirectory(folder / "first").backbone.mkdir()
    (folder / "broken").mkdir()
    for name in ("config.json", "environment.json"):
        (folder / "broken" / name).write_text("{")
    return folder


def test_runs_are_found_at_any_depth(folder: Path) -> None:
    runs = {Path(run.path).name: run for run in list_runs(folder)}
    assert {name: run.state for name, run in runs.items()} == {"first": "finished", "second": "running", "broken": "damaged"}
    assert (runs["first"].steps, runs["second"].steps) == (2, 3)
    assert runs["first"].objective == "MaPeT"
    assert runs["first"].data == "somewhere"


def test_lines_are_short_enough_to_read(folder: Path) -> None:
    lines = table(list_runs(folder), folder).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["run", "state", "objective", "steps", "loss", "training", "evaluations", "data"]
    assert lines[2].startswith("deep/er/second  running")


def test_runs_are_selected_by_their_settings(folder: Path) -> None:
    runs = list_runs(folder)
    assert [Path(run.path).name for run in selected(runs, {"training.steps": 3})] == ["second"]
    with pytest.raises(SettingsError, match=r"No run has a setting 'training\.step'"):
        selected(runs, {"training.step": 3})


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("runs", str(folder), "--where", "training.steps=2", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert mapet("runs", str(folder), "--where", "training.steps=7") == 0
    assert "3 runs lie below" in capsys.readouterr().out
    assert mapet("runs", str(folder / "store")) == 0
    assert "No run lies below" in capsys.readouterr().out
    assert mapet("runs", str(folder / "nowhere")) == 2


def test_what_differs_between_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("runs", str(folder), "--compare") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "training.steps" in head
    assert "training.lr" in head  # the damaged run has no settings
    assert mapet("runs", str(folder / "deep"), "--compare") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "loss", "evaluations"]
    assert len(lines) == 3
