"""Whatever ends a run, the same command continues it to bitwise the same weights."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.ranks import forked
from tests.faults.killed_runs import STEPS, on_the_command_line, run_all
from tests.tiny import LOCATION, assert_equal_weights, tiny_tokenizer, tiny_values

TIMINGS = ("images_per_second", "waiting", "seconds")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("killed")
    process = forked(run_all, folder)
    process.join(170)
    assert process.exitcode == 0
    return folder, json.loads((folder / "ends.json").read_text())


def entries(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in lines]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    return {**load_file(last / "model.safetensors"), **load_file(last / "optimizer.safetensors")}


KILL = -signal.SIGKILL
ENDS = {
    "killed-0": [KILL] * 3 + [0],
    "killed-2": [KILL] * 3 + [0],
    "saving": [KILL, KILL, 0],
    "terminated": [130, 0],
    "stored": [KILL, KILL, 0],
    "online": [KILL, KILL, 0],
}


def whole(folder: Path, name: str) -> Path:
    """The run with the same view that was not interrupted."""
    return folder / (f"whole-{name}" if name in ("stored", "online") else "whole")


@pytest.mark.parametrize("name", ENDS)
def test_interrupted_runs_end_with_the_weights_of_the_whole_one(runs, name: str) -> None:
    folder, ends = runs
    assert ends[whole(folder, name).name] == [0]
    assert ends[name] == ENDS[name]
    assert_equal_weights(final_weights(folder / name), final_weights(whole(folder, name)))
    backbone = "backbone/weights.safetensors"
    assert_equal_weights(load_file(folder / name / backbone), load_file(whole(folder, name) / backbone))


@pytest.mark.parametrize("name", ENDS)
def test_every_step_is_logged_once_and_the_same(runs, name: str) -> None:
    folder, _ = runs
    assert [entry["step"] for entry in entries(folder / "whole")] == list(range(1, STEPS + 1))
    assert entries(folder / name) == entries(whole(folder, name))


def test_tensorboard_shows_every_step_once(runs) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = runs
    board = EventAccumulator(str(folder / "killed-2" / "tensorboard")).Reload()
    shown = board.Scalars("loss")
    assert [event.step for event in shown] == list(range(1, STEPS + 1))
    assert [event.value for event in shown] == pytest.approx([entry["loss"] for entry in entries(folder / "whole")])


def test_leftovers_of_killed_writers_are_cleaned_up(runs) -> None:
    folder, ends = runs
    assert ends["left over"] == [1]
    assert [path for name in ENDS for path in (folder / name).rglob("*.partial")] == []


def test_starts_are_recorded(runs) -> None:
    folder, ends = runs
    assert Counter(len(json.loads((folder / name / "environment.json").read_text())) == len(ends[name]) for name in ENDS) == {
        True: len(ENDS)
    }


def test_ctrl_c_on_the_command_line(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_values(training__steps=STEPS, mechanics__checkpoint_every=4)))
    words = ("pretrain", LOCATION, "--recipe", "tiny.yaml", "--tokenizer", "tokenizer", "--out", "run")
    slow = ("--set", "mechanics.micro_batch=1")  # eight passes a step, so that there is time to interrupt
    process = forked(on_the_command_line, tmp_path, *words, *slow)
    assert process.pid is not None
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not metrics.is_file() or not metrics.read_text()):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    errors = (tmp_path / "errors.txt").read_text()
    assert process.exitcode == 130, errors
    assert "Traceback" not in errors
    last = entries(tmp_path / "run")[-1]["step"]
    assert last < STEPS
    assert f"Stopped after step {last} of the pre-training. The same command continues from there." in errors
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())][-1] == f"step-{last:08d}"
