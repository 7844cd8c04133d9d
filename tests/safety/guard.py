"""Watches what opening a folder does: imports, connections, processes, and files that it has no business with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

# Modules that hostile files name, and that nothing imports by itself.
NAMED = ("canary", "this", "antigravity", "transformers.pipelines")
# What installed packages try to import where it is there.
OPTIONAL = ("lz4", "psutil")
KNOWN = {*sys.stdlib_module_names, *packages_distributions(), *OPTIONAL, "tests"} - {*NAMED}
_CONNECTING = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
    "http.client.connect",
)
_STARTING = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pty.spawn",
    "webbrowser.open",
)
_watching: list[tuple[list[str], Path]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    seen, forbidden = _watching[-1]
    if event == "import":
        name = str(arguments[0])
        if name in NAMED or name.partition(".")[0] not in KNOWN:
            seen.append(f"import of {name}")
    elif event in _CONNECTING or event in _STARTING:
        seen.append(f"{event} {arguments!r:.200}")
    elif event in ("open", "os.listdir", "os.scandir") and str(forbidden) in str(arguments[0]):
        seen.append(f"{event} {arguments[0]}")


sys.addaudithook(_hook)  # stays for as long as the process lives, and does nothing outside `watched`


@contextmanager
def watched(forbidden: Path) -> Iterator[list[str]]:
    """What was imported from outside, connected to, started, or opened in `forbidden`, while the block ran.

    The commit that a run records is looked up by starting git, whatever a file says; it is not reported.
    """
    seen: list[str] = []
    _watching.append((seen, forbidden))
    try:
        yield seen
    finally:
        _watching.pop()
        seen[:] = [line for line in seen if "'git'" not in line]
