"""Every command with --out: a full disk, and one writer a place."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from mapet.runtime import files
from mapet.runtime.lock import only_writer
from tests.command import mapet
from tests.faults.verbs import VERBS, command, target, write_inputs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def on_a_full_disk(verb: str, place: dict[str, Path], out: Path) -> tuple[int, set[Path]]:
    """The exit code, and what the command had made its own, by the locks that lay there when the disk was full."""
    owned: set[Path] = set()

    def full(path: Path) -> None:
        owned.update(lock.with_name(lock.name[1 : -len(".lock")]) for lock in out.parent.rglob(".*.lock"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_flush", full)
        return mapet(*command(verb, place, out)), owned


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "export onnx"])
def test_f10_f6_a_full_disk_and_a_second_writer(verb: str, place: dict[str, Path], tmp_path: Path, capsys) -> None:
    """F10: exit 1, in words, whatever is written. F6: exit 2, the holder is named, nothing is written."""
    first, second = tmp_path / "first" / "out", tmp_path / "second" / "out"
    first.parent.mkdir()
    code, owned = on_a_full_disk(verb, place, first)
    words = " ".join(capsys.readouterr().err.split())
    assert code == 1
    assert "Cannot write " in words
    assert "No space left on device" in words
    assert "make room" in words
    assert "Traceback" not in words
    assert not target(verb, first).is_file()
    assert owned
    refused_while_held([second.parent / path.relative_to(first.parent) for path in owned], command(verb, place, second), capsys)


def test_f6_a_second_writer_of_onnx(place: dict[str, Path], tmp_path: Path, capsys) -> None:
    """F6: refused before the many seconds that this export takes; its files are put in place as those of the other exports."""
    if not (find_spec("onnx") and find_spec("onnxscript")):
        pytest.skip("onnx is not installed")
    refused_while_held([tmp_path / "out"], command("export onnx", place, tmp_path / "out"), capsys)


def refused_while_held(owned: list[Path], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root = owned[0].parent
    with only_writer(*owned):
        before = sorted(root.rglob("*"))
        assert mapet(*words) == 2
        assert sorted(root.rglob("*")) == before
    printed = " ".join(capsys.readouterr().err.split())
    assert f"is being written by process {os.getpid()} on " in printed
    assert "stop it, or give another --out" in printed
