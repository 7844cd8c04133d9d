"""Runs the command line in this process, and tells other processes where the code under test lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import mapet as package
from mapet.cli.main import main

ROOT = Path(__file__).resolve().parents[1]


def mapet(*words: str | Path) -> int:
    """Exit code of `mapet WORDS...`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mapet", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def environment() -> dict[str, str]:
    """For a process that a test starts: the `mapet` that this process imported, these tests, and one thread."""
    code = Path(package.__file__).resolve().parents[1]
    return os.environ | {"PYTHONPATH": f"{code}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
