"""Runs the command line in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mapet.cli.main import main


def mapet(*words: str | Path) -> int:
    """Exit code of `mapet WORDS...`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mapet", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
