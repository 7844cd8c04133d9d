"""Memory that a process frees is kept for its next allocation, where glibc would give it back to the system."""

from __future__ import annotations

import ctypes
import os
import platform

# Numbers of mallopt(3), and the environment variables by which the user chooses.
_OPTIONS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
_OTHERS = ("GLIBC_TUNABLES", "LD_PRELOAD")
_LARGEST = 2**31 - 1  # bytes; an int of C


def keep_freed_memory() -> bool:
    """Lets glibc keep freed blocks of up to 2 GiB for this process.

    On a CPU, every layer allocates its output anew. Blocks above some megabytes are mapped and unmapped each time, and the kernel
    clears them each time, which is most of the time of encoding by a convolutional network. The process keeps its largest size.

    Returns:
        Whether it was done: on Linux with glibc, unless the environment chooses an allocator or these options.
    """
    if platform.system() != "Linux" or any(os.environ.get(name) for name in (*_OPTIONS, *_OTHERS)):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and min(mallopt(option, _LARGEST) for option in _OPTIONS.values()) == 1
