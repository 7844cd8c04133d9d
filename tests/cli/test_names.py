"""File names are bytes: what is not UTF-8 is shown with escapes and never ends a command."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from mapet.tokenizers.random_projection import RandomProjection
from tests.command import mapet
from tests.data.images import write_images


def test_names_that_are_not_utf8_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_images(folder, "1.png 2.png")
    (folder / os.fsdecode(b"na\xefve.png")).write_text("no image")
    RandomProjection(image_size=8, patch_size=4, vocab_size=20).save(tmp_path / "tokenizer")
    command = ("tokenize", folder, "--tokenizer", tmp_path / "tokenizer", "--workers", "0")
    for out, limit, code in ((folder / "one", "0", 2), (tmp_path / os.fsdecode(b"\xe9t\xe9"), "1", 0)):
        printed = io.BytesIO()
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, io.TextIOWrapper(printed, "utf-8", "strict", write_through=True))
        ended = mapet(*command, "--out", out, "--max-unreadable", limit)
        assert ended == code, printed.getvalue()
        assert rb"caf\udce9/na\udcefve.png: not an image" in printed.getvalue()
