"""F20: Ctrl-C and SIGTERM end every command with 130 and one line, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mapet.cli import main as entry
from mapet.errors import InterruptedRunError
from tests.command import environment, mapet

FIT = ("tokenizer", "fit", "tests.cli.signalled:images", "--image-size", "8", "--patch-size", "2", "-k", "4", "--workers", "0")

START = """
import importlib.abc, os, sys

class AtImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == os.environ["MOMENT"]:
            os.kill(os.getpid(), int(os.environ["NUMBER"]))

sys.meta_path.insert(0, AtImport())
from mapet.cli.main import main
main()
"""


def end(words: list[str], moment: str, number: int, folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", START, *words],
        env=environment() | {"MOMENT": moment, "NUMBER": str(number)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("mapet.cli.app", signal.SIGINT),
        ("typer", signal.SIGTERM),
        ("numpy.linalg", signal.SIGINT),
        ("torch.nn", signal.SIGTERM),
    ],
)
def test_f20_while_modules_are_imported(moment: str, number: int, tmp_path: Path) -> None:
    code, said = end([*FIT, "--out", "tokenizer"], moment, number, tmp_path)
    assert (code, said) == (130, f"mapet: interrupted ({signal.Signals(number).name})\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGUSR1, 75)])
def test_f20_while_a_tokenizer_is_fitted(number: int, code: int, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NUMBER", str(int(number)))
    assert mapet(*FIT, "--out", tmp_path / "tokenizer") == code
    assert capsys.readouterr().err.splitlines()[-1] == f"mapet: interrupted ({signal.Signals(number).name})"
    assert not (tmp_path / "tokenizer" / "tokenizer.json").exists()


LATE = """
import os, signal, sys
import mapet.cli.main as entry

class Late:
    def __init__(self, kill, here): self.kill, self.here = kill, here
    def __del__(self): [self.kill(self.here, number) for number in (signal_int, signal_term, signal_usr1)]

signal_int, signal_term, signal_usr1 = map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
sys.late = Late(os.kill, os.getpid())
entry._run = lambda: 0
entry.main()
"""


def test_f20_after_the_work() -> None:
    """F20: the exit code is that of the work while Python takes its modules down."""
    done = subprocess.run([sys.executable, "-c", LATE], env=environment(), capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stderr) == (0, "")


EVALUATED = """
import os, signal
import mapet.cli.main as entry

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

entry._run = lambda: eval("stop()", {"stop": stop})
entry.main()
"""


def test_f20_while_annotations_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "evaluated.py").write_text(EVALUATED, encoding="utf-8")
    command = [sys.executable, "-m", "evaluated"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "mapet: interrupted (SIGTERM)\n")


TWICE = """
import os, signal, sys, time
import mapet.cli.main as entry

def run():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

entry._run = run
entry.main()
"""


def test_f20_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment(), capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "mapet: interrupted (SIGTERM)\n")


def test_f20_whatever_an_interrupted_call_raises_is_an_interruption(monkeypatch, capsys) -> None:
    def run() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("a module could not be initialised") from None
        return 0

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(entry, "_run", run)
    assert mapet() == 130
    assert capsys.readouterr().err == "mapet: interrupted (SIGTERM)\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_f20_a_run_that_was_stopped_says_so_itself(monkeypatch, capsys) -> None:
    def app() -> None:
        raise InterruptedRunError("Stopped after step 3. The same command continues from there.")

    monkeypatch.setattr("mapet.cli.app.app", app)
    assert mapet() == 130
    assert capsys.readouterr().err == "mapet: Stopped after step 3. The same command continues from there.\n"
