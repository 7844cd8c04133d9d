"""Checkpoints are complete or not there, and damage costs no more than the steps since the one before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mapet.engine import checkpoint
from mapet.engine.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from mapet.errors import CheckpointError, StorageError
from mapet.runtime import tensors
from tests.distributed.ranks import run_code
from tests.tiny import assert_equal_weights, tiny_settings, tiny_trainer, weights_of

FILES = ("model.safetensors", "optimizer.safetensors", "checkpoint.json")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(folder: Path, step: int, keep: int = 10, value: float = 0.0) -> torch.nn.Module:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value or step)
    save_checkpoint(folder, step, "science", model, torch.optim.AdamW(model.parameters()), keep)
    return model


@pytest.fixture(scope="module")
def finished(tmp_path_factory, store) -> Path:
    """A run of four steps with checkpoints after the second, third and fourth."""
    run = tmp_path_factory.mktemp("finished") / "run"
    settings = tiny_settings(training__steps=4, mechanics__checkpoint_every=1, mechanics__keep_checkpoints=3)
    tiny_trainer(run, store, settings).run()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_first(path: Path) -> None:
    flip(path, 0.0)


def flip_middle(path: Path) -> None:
    flip(path, 0.5)


def flip(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


DAMAGE = [half, flip_first, flip_middle, Path.unlink]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(run: Path, file: str, damage, capsys) -> None:
    damage(run / "checkpoints" / "step-00000004" / file)
    found = newest_checkpoint(run / "checkpoints")
    assert found is not None
    assert (found.step, found.path.name) == (3, "step-00000003")
    message = " ".join(capsys.readouterr().err.split())
    assert "Passing over a damaged checkpoint" in message
    assert f"step-00000004/{file}" in message.replace(" ", "")


def test_no_byte_of_the_header_can_change_unnoticed(run: Path) -> None:
    path = run / "checkpoints" / "step-00000004" / "checkpoint.json"
    whole = path.read_bytes()
    for index in range(0, len(whole), 3):
        if whole[index : index + 1].isspace():
            continue
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint._verified(path.parent)


def test_a_run_goes_on_from_the_one_before_to_the_same_weights(run: Path, store) -> None:
    expected = (run / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()
    half(run / "checkpoints" / "step-00000004" / "model.safetensors")
    settings = tiny_settings(training__steps=4, mechanics__checkpoint_every=1, mechanics__keep_checkpoints=3)
    trainer = tiny_trainer(run, store, settings)
    assert trainer.first_step == 3
    trainer.run()
    assert (run / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes() == expected
    assert [entry["step"] for entry in trainer.run_directory.read_metrics()] == [1, 2, 3, 4]


def test_all_damaged_is_an_error_that_says_what_to_do(run: Path, store) -> None:
    for folder in (run / "checkpoints").iterdir():
        half(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"All 3 checkpoints below .* are damaged\. Delete that folder"):
        tiny_trainer(run, store, tiny_settings(training__steps=4))


def test_none_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_weights_and_moments_come_back_bitwise(run: Path, store) -> None:
    settings = tiny_settings(training__steps=4)
    one, other = (tiny_trainer(run, store, settings) for _ in range(2))
    state, again = one.step.optimizer.state_dict(), other.step.optimizer.state_dict()
    assert state["state"].keys() == again["state"].keys()
    assert len(state["state"]) == len(list(one.objective.parameters()))
    for index, entry in state["state"].items():
        assert_equal_weights(entry, again["state"][index])
    assert {float(entry["step"]) for entry in state["state"].values()} == {4.0}
    assert_equal_weights(weights_of(one.objective), weights_of(other.objective))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_one_never_pushes_out_a_whole_one(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 50)
    save(tmp_path, 100)
    half(tmp_path / "step-00000100" / "model.safetensors")
    save(tmp_path, 60, keep=keep)
    assert names(tmp_path) == ["step-00000050", "step-00000060"][-keep:]
    assert newest_checkpoint(tmp_path).step == 60


def test_leftovers_of_killed_writers_of_any_step_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".step-00000037.{process.pid}.partial").mkdir()
    save(tmp_path, 40)
    assert names(tmp_path) == ["step-00000040"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_safetensors(*_: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(("where", "failure"), [("os.fsync", full), ("save_file", full_in_safetensors), ("save_file", full)])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, where: str, failure, monkeypatch) -> None:
    model = save(tmp_path, 1, keep=1)
    if where == "os.fsync":
        monkeypatch.setattr(os, "fsync", failure)
    else:
        monkeypatch.setattr(tensors, where, failure)
    with pytest.raises(StorageError, match=r"Cannot write .*step-00000002.*No space left on device.*before is intact"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    found = newest_checkpoint(tmp_path)
    restored = torch.nn.Linear(2, 2)
    load_checkpoint(found, restored, torch.optim.AdamW(restored.parameters()))
    assert_equal_weights(weights_of(restored), weights_of(model))


FULL_DISK = """
import io, resource, sys, torch
from pathlib import Path
from tests.tiny import tiny_settings, tiny_store, tiny_trainer
from mapet.errors import StorageError
torch.set_num_threads(1)
store = tiny_store(Path("store"))
streams = sys.stdout, sys.stderr  # they go to files, which have the limit too
sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
for limit in (1, 10_000):
    trainer = tiny_trainer(Path(f"run-{limit}"), store, tiny_settings(training__steps=6, mechanics__checkpoint_every=2))
    take = trainer.training_step
    def step_until_full(step, batch, lr, take=take):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return take(step, batch, lr)
    trainer.training_step = step_until_full
    try:
        trainer.run()
    except StorageError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for stream, text in zip(streams, (sys.stdout, sys.stderr)):
    stream.write(text.getvalue())
"""


def test_a_real_limit_on_file_sizes_stops_a_run_with_one_message(tmp_path: Path) -> None:
    """One byte: nothing can be written any more, metrics first; 10,000: metrics fit and the weights do not."""
    ended = run_code(FULL_DISK, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    first, second = ended.stdout.splitlines()
    assert first.startswith("Cannot write run-1/metrics.jsonl: File too large")
    assert second.startswith("Cannot write run-10000/checkpoints/step-00000006: ")
    assert "File too large" in second
    assert "What was written before is intact" in second
    for run in (tmp_path / "run-1", tmp_path / "run-10000"):
        assert newest_checkpoint(run / "checkpoints").step == 4
        assert names(run / "checkpoints") == ["step-00000002", "step-00000004"]
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines[:4]] == [1, 2, 3, 4]
