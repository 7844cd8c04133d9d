"""Plants every mutant in a copy of the code and runs the tests that should notice: `./dev mutants [NAME...]`.

A mutant is killed where one of its tests fails by itself. An error while tests are collected or modules are imported kills nothing:
it shows that the mutant is no plausible mistake, and ends the program with exit code 1 as a survivor does.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.mutation.mutants import CHECKOUT, CODE, Mutant, every_mutant

KILLED, SURVIVED, BROKEN = "killed", "survived", "BROKEN"
SECONDS_A_TEST, SECONDS_AN_ID = 60, 300
OUTPUT, MOST_OUTPUT = "output.txt", 3000
_LIBRARIES = ("mapet.compat", "datasets", "pydantic", "sklearn.neighbors", "torch.utils.tensorboard", "transformers")
_NO_KILL = (ImportError, SyntaxError, NameError)


@dataclass(frozen=True)
class Verdict:
    """How the tests of a mutant ended.

    Args:
        kind: KILLED, SURVIVED or BROKEN.
        by: The test that failed and its exception; or what is broken.
    """

    kind: str
    by: str = ""


class FirstFailure:
    """A plugin of pytest that keeps the first failure of a test."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None

    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector, call: pytest.CallInfo) -> None:
        """Called by pytest for every failure, of a test and of a file that cannot be collected."""
        assert call.excinfo is not None
        late = "Timeout" in str(call.excinfo.value)
        dies = isinstance(node, pytest.Item) and not late and not issubclass(call.excinfo.type, _NO_KILL)
        words = f"{node.nodeid} ({call.excinfo.typename})"
        self.verdict = self.verdict or Verdict(KILLED if dies else BROKEN, words)


def keep_libraries() -> list[object]:
    """Imports what takes long, for all forked processes, and forgets our own modules, which come from the copy there."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    return [sys.modules.pop(name) for name in _own_modules()]


def _own_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "mapet"]


def judge(code: Path, tests: Sequence[str]) -> Verdict:
    """How `tests` end in a process whose `mapet` is the one in the folder `code`."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_tests, args=(code, tests, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(SECONDS_AN_ID * len(tests)):
            return receiver.recv()
        return Verdict(BROKEN, f"no end after {SECONDS_AN_ID * len(tests)} s")
    except EOFError:
        return Verdict(BROKEN, "the process of the tests died")
    finally:
        process.kill()
        process.join()


def _run_tests(code: Path, tests: Sequence[str], answer: Connection) -> None:
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(code))
    with (code.parent / OUTPUT).open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    first = FirstFailure()
    options = ["-x", "-n", "0", "--timeout", str(SECONDS_A_TEST), "--basetemp", str(code.parent / "tmp")]
    options += ["-W", "ignore:Module already imported"]  # plugins of pytest that the libraries kept imported too
    ended = pytest.main([*options, *tests], plugins=[first])
    others = [name for name in _own_modules() if not str(sys.modules[name].__file__).startswith(str(code))]
    if others:
        answer.send(Verdict(BROKEN, f"{others[0]} was not imported from the copy"))
    elif ended == pytest.ExitCode.OK:
        answer.send(Verdict(SURVIVED))
    else:
        answer.send(first.verdict or Verdict(BROKEN, f"pytest ended with {ended}: {' '.join(tests)}"))


def chosen(names: Sequence[str]) -> list[Mutant]:
    """The mutants of these names or places; all where none is given."""
    mutants = every_mutant()
    unknown = [name for name in names if not any(name in (mutant.name, mutant.place) for mutant in mutants)]
    if unknown:
        places = ", ".join(dict.fromkeys(mutant.place for mutant in mutants))
        sys.exit(f"There is no mutant and no place '{unknown[0]}'. Places: {places}.")
    return [mutant for mutant in mutants if not names or {mutant.name, mutant.place} & {*names}]


def main(names: Sequence[str]) -> int:
    """Prints a line a mutant; 1 if one is not killed, or if the tests fail without any."""
    mutants, began, alive = chosen(names), time.monotonic(), 0
    kept = keep_libraries()
    with tempfile.TemporaryDirectory(prefix="mapet-mutants-") as folder:
        code = Path(folder) / "src"
        shutil.copytree(CODE, code)
        sound = judge(code, sorted({test for mutant in mutants for test in mutant.test_ids}))
        print(f"without a mutant: {sound.kind} {sound.by} ({time.monotonic() - began:.0f} s)", flush=True)
        if sound.kind != SURVIVED:
            print((Path(folder) / OUTPUT).read_text(errors="replace")[-MOST_OUTPUT:])
            return 1
        for mutant in mutants:
            path, start = code / "mapet" / mutant.file, time.monotonic()
            text = path.read_text(encoding="utf-8")
            path.write_text(mutant.applied(text), encoding="utf-8")
            verdict = judge(code, mutant.test_ids)
            path.write_text(text, encoding="utf-8")
            alive += verdict.kind != KILLED
            print(f"{verdict.kind:9}{time.monotonic() - start:4.0f} s  {mutant.name:60} {verdict.by}", flush=True)
            if verdict.kind == BROKEN:
                print((Path(folder) / OUTPUT).read_text(errors="replace")[-MOST_OUTPUT:], flush=True)
    del kept
    places = len({mutant.place for mutant in mutants})
    print(f"{len(mutants) - alive} of {len(mutants)} mutants in {places} places killed, {time.monotonic() - began:.0f} s")
    return int(alive > 0)


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    sys.exit(main(sys.argv[1:]))
