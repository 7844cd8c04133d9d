"""Every command with --out: one writer a place, and a full disk."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from mapet.report import drawing, gallery
from mapet.runtime import files
from mapet.runtime.lock import only_writer
from tests.command import mapet
from tests.faults.verbs import VERBS, command, target, write_inputs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "DPI", 50)
    monkeypatch.setattr(gallery, "PATCHES", 3)


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> str:
    if request.param == "export onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        pytest.skip("onnx is not installed")
    return request.param


def held(verb: str, place: dict[str, Path], out: Path, first: Path) -> Path:
    """What a command to `out` makes its own: `out`, and of evaluations the files of each result, as a first one shows."""
    if not verb.startswith("evaluate"):
        return target(verb, out)
    assert mapet(*command(verb, place, first)) == 0
    (result,) = first.glob("*.json")
    return out / result.stem


def test_f6_a_second_writer_is_refused(verb: str, place: dict[str, Path], tmp_path: Path, capsys) -> None:
    """F6: exit 2, the holder is named, nothing is written."""
    own = held(verb, place, tmp_path / "out", tmp_path / "first")
    with only_writer(own):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert mapet(*command(verb, place, tmp_path / "out")) == 2
        assert sorted(tmp_path.rglob("*")) == before
    words = " ".join(capsys.readouterr().err.split())
    assert f"is being written by process {os.getpid()} on " in words
    assert "stop it, or give another --out" in words


def test_f10_a_full_disk(verb: str, place: dict[str, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    """F10: exit 1, in words, whatever is written."""

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "_flush", full)
    assert mapet(*command(verb, place, tmp_path / "out")) == 1
    words = " ".join(capsys.readouterr().err.split())
    assert "Cannot write " in words
    assert "No space left on device" in words
    assert "make room" in words
    assert "Traceback" not in words
    assert not target(verb, tmp_path / "out").is_file()
