"""Freed memory is kept: blocks of many megabytes cost page faults once, and not each time. Threads that wait do not compute."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from mapet.runtime.allocator import keep_freed_memory

print(keep_freed_memory())
b"x" * (1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    b"x" * (1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, False)], ids=str)
def test_large_blocks_are_kept_unless_the_user_chose(environment: dict[str, str], kept: bool) -> None:
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=chosen | environment, capture_output=True, text=True, check=True)
    answer, faults = done.stdout.split()
    assert answer == str(kept)
    assert (int(faults) < 1000) is kept  # 64 MiB are 16,384 pages of 4 KiB


@pytest.mark.parametrize(("environment", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")], ids=str)
def test_waiting_threads_leave_their_core_unless_the_user_chose(environment: dict[str, str], policy: str) -> None:
    """Read by OpenMP when torch is imported, which the command does later."""
    program = "import os, sys\nfrom mapet.cli.main import main\nsys.argv = ['mapet', 'recipes', 'digits']\n"
    program += "try:\n    main()\nfinally:\n    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", program], env=others | environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{policy} False"
