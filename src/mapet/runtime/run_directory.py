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
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mapet.errors import CheckpointError
from mapet.runtime.files import storage_errors, write_json, write_text

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
        """The content of config.json."""
        return read_json(self.config)

    def record_environment(self) -> None:
        """Adds one entry about this start to environment.json."""
        starts = read_json(self.environment) if self.environment.is_file() else []
        write_json(self.environment, [*starts, describe_environment()])

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with storage_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a crash cut off is left out."""
        if not self.metrics.is_file():
            return []
        entries = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return entries

    def forget_metrics_after(self, step: int) -> None:
        """Drops entries beyond `step`, which the continued run will write again."""
        kept = [json.dumps(entry) + "\n" for entry in self.read_metrics() if entry["step"] <= step]
        write_text(self.metrics, "".join(kept))


def read_json(path: Path) -> Any:
    """A JSON file's content, or a CheckpointError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. The file is damaged or missing.") from None


def describe_environment() -> dict[str, Any]:
    """Versions, hardware, commit and command line, as a run records them and as figures are published with."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _version(package: str) -> str | None:
    """None where it runs from a folder without being installed."""
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
