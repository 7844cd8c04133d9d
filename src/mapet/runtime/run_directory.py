"""A run directory: everything about one pre-training, in files that outlive it.

config.json        the settings, science and mechanics apart, with the hash of the science
environment.json   versions, hardware, commit, command line; one entry for every start
metrics.jsonl      one line every few steps
warnings.jsonl     what the vital signs warned of, in words
tensorboard/       the same, for TensorBoard
tokenizer/ tokens/ made by this run where none were given
checkpoints/       to continue from
backbone/          the result: weights and what timm needs to build the model
evaluations/       what the backbone was found to be worth
report.html
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mapet.config.settings import hash_of_science
from mapet.errors import CheckpointError
from mapet.runtime.files import storage_errors, write_json, write_text
from mapet.runtime.json_files import read_json
from mapet.runtime.jsonl import Lines, append_line, is_number, is_step, read_lines
from mapet.runtime.progress import say

# The types of what config.json holds; all of it may be missing.
WAY_OUT = "Restore it from a copy. Without it the settings of this run are unknown, and a new run needs another --out."
_CONFIG = {
    "data": str,
    "tokenizer": str | None,
    "tokens": str | None,
    "tokenizer_fingerprint": str | None,
    "images": dict | None,
    "unreadable_images": int,
    "science_hash": str,
    "science": dict,
    "mechanics": dict,
}
_ENVIRONMENT = {"gpus": list, "packages": dict}  # what is read entry by entry; the rest is shown as it is
_PACKAGES = ("mapet", "torch", "torchvision", "timm", "numpy", "pillow", "datasets")


class RunDirectory:
    """Paths of a run, and the small files in it.

    Args:
        path: The folder; made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise CheckpointError(f"{path} is a file, and a run directory is a folder. Give another --out.")
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.tokenizer = self.path / "tokenizer"
        self.tokens = self.path / "tokens"
        self.checkpoints = self.path / "checkpoints"
        self.backbone = self.path / "backbone"
        self.evaluations = self.path / "evaluations"
        self.report = self.path / "report.html"

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A run that has been started, or a CheckpointError."""
        run = cls(path)
        if not run.config.is_file():
            raise CheckpointError(f"{path} is not a run directory: it has no config.json. Give the --out of `mapet pretrain`.")
        return run

    def read_config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            CheckpointError: It is missing or damaged, or the science differs from its hash; the message has a remedy.
        """
        try:
            config = read_json(self.config, dict)
        except CheckpointError as error:
            raise CheckpointError(f"{error} {WAY_OUT}") from None
        for name, kind in _CONFIG.items():
            if name in config and not isinstance(config[name], kind):
                damage = f"'{name}' is {config[name]!r:.80}"
                raise CheckpointError(f"{self.config} is not what a run writes: the file is damaged ({damage}). {WAY_OUT}")
        science = config.get("science")
        if science and config.get("science_hash") not in (None, hash_of_science(science)):
            raise CheckpointError(f"{self.config} was changed: its science has another hash than was recorded. {WAY_OUT}")
        return config

    def read_environments(self) -> list[dict[str, Any]]:
        """The entries of environment.json, one for every start; none where there is no such file.

        Raises:
            CheckpointError: The file is damaged.
        """
        starts = read_json(self.environment, list) if self.environment.is_file() else []
        if not all(map(_is_start, starts)):
            raise CheckpointError(f"{self.environment} does not hold a list of starts: the file is damaged.")
        return starts

    def record_environment(self) -> None:
        """Adds one entry about this start to environment.json; a damaged one is kept aside, and a new one begun."""
        try:
            starts = self.read_environments()
        except CheckpointError as error:
            aside, starts = self.environment.with_name("environment.damaged.json"), []
            with storage_errors(aside):
                os.replace(self.environment, aside)
            say(f"{error} It is kept as {aside.name}; earlier starts are not listed any more.")
        write_json(self.environment, [*starts, describe_environment()])

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        append_line(self.metrics, entry)

    def metrics_lines(self) -> Lines:
        """The entries of metrics.jsonl, numbers by name, each with a step, and how many lines are none."""
        return read_lines(self.metrics, lambda entry: is_step(entry.get("step")) and all(map(is_number, entry.values())))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The entries of metrics.jsonl; a line that is cut off or damaged is left out."""
        return self.metrics_lines().entries

    def forget_metrics_after(self, step: int) -> None:
        """Drops entries beyond `step`, which the continued run will write again, and lines that are damaged, which is stated."""
        lines = self.metrics_lines()
        if remark := lines.remark():
            say(remark)
        write_text(self.metrics, "".join(json.dumps(entry) + "\n" for entry in lines.entries if entry["step"] <= step))


def _program() -> str:
    """The name of the program; `python -m mapet` is written as `mapet`, which does the same."""
    name = Path(sys.argv[0]).name
    return "mapet" if name == "__main__.py" else name


def _is_start(entry: object) -> bool:
    """Whether an entry of environment.json has the types that `describe_environment` gives."""
    if not isinstance(entry, dict) or any(not isinstance(entry.get(name, kind()), kind) for name, kind in _ENVIRONMENT.items()):
        return False
    return all(isinstance(gpu, str) for gpu in entry.get("gpus", ()))


def describe_environment() -> dict[str, Any]:
    """Versions, hardware, commit and command line, as a run records them and as figures are published with."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def package_version(package: str) -> str | None:
    """The version of an installed package; None where it runs from a folder without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with + where files were changed; None if it is in no checkout."""
    here = Path(__file__)
    commands = (
        ["ls-files", "--error-unmatch", here.name],  # fails in a .venv inside somebody else's checkout
        ["rev-parse", "--short=12", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
    )
    try:
        _, commit, changes = (
            subprocess.run(["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=True, timeout=10).stdout
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes.strip() else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
