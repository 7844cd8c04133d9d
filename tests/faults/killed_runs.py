"""Runs that are killed, in processes forked from one that has imported what they need.

`run_all` leaves FOLDER/whole, never interrupted, and FOLDER/NAME for every scenario, continued by the same call until done.
FOLDER/ends.json holds how each process ended.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mapet.engine import checkpoint
from mapet.errors import MapetError
from mapet.pretraining import pretrain, step
from mapet.runtime import files
from tests.command import mapet
from tests.tiny import LOCATION, tiny_settings, tiny_tokenizer

STEPS = 20
SLOWER = 0.01
STORED = {"name": "stored", "count": 3}
ONLINE = {"name": "online"}


def fork(out: Path, workers: int, prepare: Callable[[], None] = lambda: None, view: dict | None = None) -> int:
    """Starts (or continues) the run `out` in a child; returns its process number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        prepare()
        changes = {"mechanics__workers": workers, "mechanics__checkpoint_every": 4, "view": view or {}}
        settings = tiny_settings(training__steps=STEPS, **changes)
        pretrain.pretrain(LOCATION, settings, out, tokenizer=out.parent / "tokenizer")
        code = 0
    except MapetError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """Waits; the exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def send_at(out: Path, after_steps: int, delay: float, workers: int, number: int, view: dict | None = None) -> int:
    """Sends a signal `delay` seconds after so many steps were logged."""
    process = fork(out, workers, view=view)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not metrics.is_file() or metrics.read_text().count("\n") < after_steps):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(process, number)
    return ended(process)


def die_while_saving() -> None:
    """Plants a SIGKILL between the two files of the third checkpoint."""
    write, written = checkpoint.write_tensors, []

    def write_or_die(path: Path, tensors: dict) -> None:
        written.append(path)
        if len(written) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, tensors)

    checkpoint.write_tensors = write_or_die


def die_before_the_checkpoint_is_in_place() -> None:
    """Plants a SIGKILL where a checkpoint is complete and not yet renamed."""
    files._put_in_place = lambda partial, path: os.kill(os.getpid(), signal.SIGKILL) if path.name.startswith("step") else None


def slow_steps() -> None:
    """Makes every step last long enough to be hit."""
    take = step.TrainingStep.__call__

    def take_slowly(self, *arguments):
        time.sleep(SLOWER)
        return take(self, *arguments)

    step.TrainingStep.__call__ = take_slowly


def run_all(folder: Path) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # a forked process has that of its server, which would import all again
    tiny_tokenizer().save(folder / "tokenizer")
    ends: dict[str, list[int]] = {"whole": [ended(fork(folder / "whole", workers=0))]}
    slow_steps()
    chance = random.Random(5)
    for workers in (0, 2):
        out = folder / f"killed-{workers}"
        kills = sorted(chance.sample(range(2, STEPS - 3), 3))
        name = out.name
        ends[name] = [send_at(out, kill, chance.uniform(0, 0.02), workers, signal.SIGKILL) for kill in kills]
        ends[name].append(ended(fork(out, workers)))
    for view in (STORED, ONLINE):
        name = str(view["name"])
        ends[f"whole-{name}"] = [ended(fork(folder / f"whole-{name}", 0, view=view))]
        ends[name] = [send_at(folder / name, kill, 0.005, 2, signal.SIGKILL, view) for kill in (3, 12)]
        ends[name].append(ended(fork(folder / name, 0, view=view)))
    saving = folder / "saving"
    ends["saving"] = [ended(fork(saving, 0, die_while_saving)), ended(fork(saving, 0, die_before_the_checkpoint_is_in_place))]
    ends["left over"] = [len(list((saving / "checkpoints").glob(".*.partial")))]
    ends["saving"].append(ended(fork(saving, 0)))
    stopped = folder / "terminated"
    ends["terminated"] = [send_at(stopped, 5, 0.005, 2, signal.SIGTERM), ended(fork(stopped, 2))]
    (folder / "ends.json").write_text(json.dumps(ends))


def on_the_command_line(folder: Path, *words: str) -> None:
    """`mapet WORDS...` in `folder`, with its errors in errors.txt."""
    multiprocessing.set_start_method(None, force=True)
    os.chdir(folder)
    with (folder / "errors.txt").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    sys.exit(mapet(*words))
