"""Checks on the tree: no file past 400 lines, nothing large, no path of one machine, nothing that a command left behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_BYTES = 400, 3 * 2**20
FOLDERS = {".ci", "benchmarks", "docs", "examples", "src", "tests"}
FILES = {
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "dev",
    "pyproject.toml",
}
MACHINE_PATH = re.compile(r"(^|[\"'`= (])(/(home|root|work|farm)/|\.\./shared)")


def complaints(path: Path) -> list[str]:
    """What is wrong with one tracked file."""
    if path.stat().st_size > MOST_BYTES:
        return [f"{path}: {path.stat().st_size / 2**20:.1f} MiB, at most {MOST_BYTES / 2**20:.0f} are allowed"]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    found = [f"{path}:{number}: a path of one machine" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    if path.suffix == ".py" and len(lines) > MOST_LINES:
        found.append(f"{path}: {len(lines)} lines, at most {MOST_LINES} are allowed")
    return found


def main() -> None:
    """Prints every complaint; exit code 1 if there is one."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    found = [complaint for path in files for complaint in complaints(path) if path != Path(__file__).resolve()]
    tops = {path.relative_to(ROOT).parts[0] for path in files}
    found += [
        f"{ROOT / top}: no part of the project; if it is to be one, add it to {Path(__file__).name}"
        for top in tops - FOLDERS - FILES
    ]
    print("\n".join(found) or f"{len(files)} files: lengths, sizes and paths are fine")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
