from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mapet.errors import CheckpointError, StorageError
from mapet.runtime import run_directory
from mapet.runtime.json_files import read_json
from mapet.runtime.run_directory import RunDirectory, describe_environment


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_metrics_survive_a_line_cut_off(run: RunDirectory) -> None:
    assert run.read_metrics() == []
    for step in range(1, 5):
        run.append_metrics({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [entry["step"] for entry in run.read_metrics()] == [1, 2, 3, 4]
    run.forget_metrics_after(3)
    run.append_metrics({"step": 4})
    assert run.metrics.read_text() == "".join(f'{{"step": {step}}}\n' for step in range(1, 5))


def test_metrics_that_cannot_be_written_are_told_in_words(run: RunDirectory) -> None:
    run.metrics.mkdir()
    with pytest.raises(StorageError, match=r"Cannot write .*metrics\.jsonl: Is a directory"):
        run.append_metrics({"step": 1})


def test_something_else_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run directory: it has no config\.json"):
        RunDirectory.existing(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: .*damaged or missing"):
        read_json(path)


def test_a_command_is_recorded_as_it_is_typed(run: RunDirectory, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/mapet/__main__.py", "pretrain", "photos"])
    run.record_environment()
    assert json.loads(run.environment.read_text())[0]["command"] == "mapet pretrain photos"


def test_every_start_is_recorded(run: RunDirectory, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/mapet", "pretrain", "my images"])
    run.record_environment()
    run.record_environment()
    first, second = json.loads(run.environment.read_text())
    assert first["command"] == second["command"] == "mapet pretrain 'my images'"
    assert first["packages"]["torch"]
    assert first["cores"] >= 1


def test_packages_that_are_not_installed_are_none(monkeypatch) -> None:
    monkeypatch.setattr(run_directory, "_PACKAGES", ("torch", "no-such-package"))
    assert describe_environment()["packages"]["no-such-package"] is None


def test_the_commit_is_that_of_the_checkout_that_holds_this_code(tmp_path: Path, monkeypatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout

    git("init", "-q")
    (tmp_path / "theirs.py").touch()
    (tmp_path / "ours.py").touch()
    git("add", "theirs.py")
    git("commit", "-q", "-m", "theirs")
    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "ours.py"))
    assert describe_environment()["commit"] is None
    git("add", "ours.py")
    git("commit", "-q", "-m", "ours")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    assert describe_environment()["commit"] == commit
    (tmp_path / "ours.py").write_text("changed")
    assert describe_environment()["commit"] == commit + "+"


GARBAGE = {
    "not UTF-8": b"\xff\xfe{}",
    "no JSON": b"{",
    "no object": b"[1]",
    "a number": b"7",
    "no step": b'{"loss": 1.0}',
    "a step in words": b'{"step": "three", "loss": 1.0}',
    "a loss in words": b'{"step": 3, "loss": "low"}',
    "5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "400 digits": b'{"step": 3, "loss": 1' + b"0" * 400 + b"}",
    "deep": b"[" * 100_000,
    "a NUL": b"\0",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_f15_a_damaged_line_is_left_out_and_counted(run: RunDirectory, garbage: bytes, capsys) -> None:
    run.metrics.write_bytes(b'{"step": 1, "loss": NaN}\n' + garbage + b'\n{"step": 2, "loss": 1.0}\n')
    assert [entry["step"] for entry in run.read_metrics()] == [1, 2]
    assert run.metrics_lines().damaged == 1
    run.forget_metrics_after(2)
    assert "1 lines of" in capsys.readouterr().err
    assert run.metrics_lines().damaged == 0
    assert len(run.read_metrics()) == 2


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"{}", b"[1]", b"[" * 100_000, b'[{"gpus": 3}]', b'[{"gpus": [null]}]', b'[{"packages": "torch"}]'],
    ids=["cut", "bytes", "object", "numbers", "deep", "gpus a number", "a gpu without a name", "packages in words"],
)
def test_f15_a_damaged_environment_is_kept_aside_and_stated(run: RunDirectory, content: bytes, capsys) -> None:
    run.environment.write_bytes(content)
    run.record_environment()
    assert len(run.read_environments()) == 1
    assert (run.path / "environment.damaged.json").read_bytes() == content
    assert "kept as environment.damaged.json" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b"[]", b'{"science": 3}', b'{"data": null}', b'{"images": []}', b'{"unreadable_images": "x"}']
)
def test_f15_a_damaged_config_names_the_way_out(run: RunDirectory, content: bytes) -> None:
    run.config.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json .*damaged.*Restore it from a copy"):
        run.read_config()
