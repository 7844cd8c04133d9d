"""Pages in headless Chromium, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


def browse(address: str, profile: Path, *options: str) -> str:
    """What Chromium prints with `options`; refuses messages on the console of the page."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--enable-logging=stderr"]
    shown = subprocess.run([*command, *options, address], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return shown.stdout


def title_of(page: str, script: str, folder: Path, *options: str) -> str:
    """The title that `script`, which runs at the end of the page, sets."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    shown = browse(f"file://{path}", folder / "profile", "--dump-dom", *options)
    return shown.partition("<title>")[2].partition("</title>")[0]
