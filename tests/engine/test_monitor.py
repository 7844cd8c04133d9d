from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mapet.engine.callbacks import Monitor, Observation
from mapet.engine.warnings import Warnings, read_warnings, standing_warnings
from mapet.errors import SettingsError
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.read import TokenStore
from tests.tiny import tiny_settings, tiny_store, tiny_trainer


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return tiny_store(tmp_path_factory.mktemp("warned") / "tokens")


def test_warnings_are_said_once_and_withdrawn_and_forgotten_with_the_steps_behind_a_checkpoint(
    tmp_path: Path, store, capsys
) -> None:
    class Voice(Monitor):
        def observe(self, point):
            return Observation({"voice": 1.0}, {"odd": "It is odd." if point.step < 8 else None})

    settings = tiny_settings(training__steps=9, mechanics__checkpoint_every=3)
    trainer = tiny_trainer(tmp_path, store, settings, monitors=[Voice()])
    trainer.run()
    assert capsys.readouterr().err.count("It is odd.") == 1
    assert [(line["step"], line["message"]) for line in read_warnings(trainer.run_directory)] == [(1, "It is odd."), (8, None)]
    assert standing_warnings(read_warnings(trainer.run_directory)) == []
    assert all(entry["voice"] == 1 for entry in trainer.run_directory.read_metrics())
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000009")
    again = tiny_trainer(tmp_path, store, settings)
    assert again.first_step == 6
    warnings = Warnings(again.run_directory, again.first_step)
    assert [line["step"] for line in read_warnings(again.run_directory)] == [1]
    warnings.update(7, "odd", "It is odd.")
    assert [line["step"] for line in read_warnings(again.run_directory)] == [1]
    with (tmp_path / "warnings.jsonl").open("a") as file:
        file.write('{"step": 9, "na')
    assert [line["step"] for line in read_warnings(again.run_directory)] == [1]


def test_a_fault_that_comes_back_is_said_again(tmp_path: Path) -> None:
    warnings = Warnings(RunDirectory(tmp_path), first_step=0)
    for step, message in enumerate(["bad", "bad", None, None, "bad", "bad"], 1):
        warnings.update(step, "odd", message)
    lines = read_warnings(RunDirectory(tmp_path))
    assert [(line["step"], line["message"]) for line in lines] == [(1, "bad"), (3, None), (5, "bad")]
    assert [line["name"] for line in standing_warnings(lines)] == ["odd"]


def test_a_monitor_that_cannot_begin_ends_those_that_have(tmp_path: Path) -> None:
    """An open record would get the entries of the next run of this process."""
    calls: list[str] = []

    class Recorder(Monitor):
        def begin(self, run: Any) -> None:
            calls.append("begin")

        def end(self, finished: bool) -> None:
            calls.append(f"end {finished}")

    class Refusing(Recorder):
        def begin(self, run: Any) -> None:
            raise SettingsError("no key")

    trainer = tiny_trainer(
        tmp_path / "run", tiny_store(tmp_path / "store"), tiny_settings(), monitors=[Recorder(), Refusing(), Recorder()]
    )
    with pytest.raises(SettingsError, match="no key"):
        trainer.run()
    assert calls == ["begin", "end False"]
