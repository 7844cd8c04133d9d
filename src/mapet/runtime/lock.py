"""One writer a folder: two jobs with the same --out would mix their files.

The lock is the kernel's (flock, by the filelock library) on `.NAME.lock` beside the place that is written. The kernel releases it
when the process ends, also by SIGKILL, so no stale lock has to be removed. On NFS it holds between machines where the server keeps
locks (NFSv4, or NFSv3 with lockd). A lock that is only a file is not used: a killed process would leave it behind for ever.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from mapet.errors import InUseError
from mapet.runtime.files import MAY_NOT, storage_errors
from mapet.runtime.printable import printable
from mapet.runtime.progress import say
from mapet.runtime.regular import open_regular

# A process that was just killed may need a moment to go.
PATIENCE = 0.5
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LONGEST_RECORD = 500


@contextmanager
def only_writer(*outs: Path | str) -> Iterator[None]:
    """Makes this process the only one that writes `outs`, for as long as the block runs.

    Whether anything can be written there is found out now, not at the end of the work. Their parents are made, and removed again
    if the block leaves them empty. Without locks in the file system, a line on standard error states it.

    Args:
        outs: Folders or files that will be written; they need not exist.

    Raises:
        InUseError: Another process writes there; it is named.
        StorageError: Nothing can be written there.
    """
    with ExitStack() as locks:
        for out in dict.fromkeys(Path(os.path.realpath(out)) for out in outs):
            locks.enter_context(_only_writer(out))
        yield


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    new_folders = [folder for folder in out.parents if not folder.exists()]
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(out)
        try:
            yield
        finally:
            if lock is not None:
                Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody else holds a file of that name
                lock.release()
    finally:
        for folder in new_folders:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _locked(out: Path) -> FileLock | None:
    """The lock of `out`, held; None where the file system has no locks.

    Raises:
        InUseError: Another process holds it.
        OSError: Neither beside `out` nor in it can a file be written.
    """
    if out.is_dir() and not os.access(out, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder is not writable")
    files = [out.with_name(f".{out.name}.lock")]
    if out.is_dir():  # a folder may be all that can be written, and all that two containers share
        files = [out / ".lock"] if out.is_mount() else [*files, out / ".lock"]
    for file in files:
        lock = FileLock(file, mode=0o666, fallback_to_soft=False, on_acquired=partial(_sign, file))
        try:
            lock.acquire(timeout=PATIENCE)
            return lock
        except Timeout:
            raise InUseError(
                f"{out} is being written by {_holder(file)}. Wait until it is done, stop it, or give another --out."
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(f"The file system of {out} has no locks ({error.strerror}): see to it that no other process writes there.")
                return None
            if error.errno not in MAY_NOT or file == files[-1]:
                raise
    raise AssertionError


def _sign(file: Path, descriptor: int) -> None:
    """Writes into the lock file who holds it; a file for which there is no room is removed while it is held."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    record = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')} ({command})"
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, record.encode(errors="backslashreplace")[:_LONGEST_RECORD])
    except OSError:
        file.unlink(missing_ok=True)
        raise


def _holder(file: Path) -> str:
    """Who holds the lock, as it signed."""
    record = ""
    with suppress(OSError), open_regular(file) as content:
        record = content.read(_LONGEST_RECORD).decode(errors="replace")
    return printable(record) or "another process"
