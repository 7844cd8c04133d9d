"""One build of a store at a time: two with different images or tokenizers would throw away each other's work."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mapet.errors import TokenStoreError

_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def build_lock(path: Path) -> Iterator[None]:
    """Holds the lock of the store at `path`; the operating system releases it when the process ends, however that happens.

    Where no lock can be had, because the folder is not writable or its file system knows none, the block runs without: what it
    writes fails in words, or is written.

    Raises:
        TokenStoreError: Another process builds this store; it is named.
    """
    file = path.absolute().with_name(f".{path.absolute().name}.lock")
    descriptor = _locked(file, path)
    try:
        yield
    finally:
        if descriptor is not None:
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(file: Path, path: Path) -> int | None:
    """The open lock file, or None where there can be none."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(file, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno not in _TAKEN:
                return None
            raise TokenStoreError(
                f"The token store {path} is being built by {holder}. Wait until it is done, stop it, or give another --out."
            ) from None
        os.close(descriptor)


def _is_still_there(file: Path, descriptor: int) -> bool:
    """Whether `file` is what was locked; whoever held it before may have removed it in between."""
    with suppress(OSError):
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    return False
