"""File names are bytes: what is not UTF-8 is shown with escapes and never ends a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mapet.tokenizers.random_projection import RandomProjection
from tests.data.images import write_images


def test_names_that_are_not_utf8_are_printed(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_images(folder, "1.png 2.png")
    (folder / os.fsdecode(b"na\xefve.png")).write_text("no image")
    RandomProjection(image_size=8, patch_size=4, vocab_size=20).save(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "mapet", "tokenize", folder, "--tokenizer", tmp_path / "tokenizer", "--workers", "0"]
    for out, limit, code in ((folder / "one", "0", 2), (tmp_path / os.fsdecode(b"\xe9t\xe9"), "1", 0)):
        ended = subprocess.run(
            [*command, "--out", out, "--max-unreadable", limit],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        )
        assert ended.returncode == code, ended.stderr
        assert r"caf\udce9/na\udcefve.png: not an image" in ended.stdout + ended.stderr
