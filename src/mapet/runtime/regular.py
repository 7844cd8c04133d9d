"""Opens regular files and nothing else: a named pipe would block for ever, and a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from io import BytesIO, FileIO, TextIOWrapper
from pathlib import Path

MOST_TEXT = 2**28
_CHUNK = 2**20  # a read allocates its memory before the size of the data is known
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path | str) -> FileIO:
    """`path` for reading, unbuffered.

    Raises:
        OSError: It cannot be opened, or is no regular file; `strerror` holds the reason in words.
    """
    _require_regular(os.stat(path).st_mode, path)  # noqa: PTH116  # before it is opened: opening a device may change it
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
        return FileIO(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def append_regular(path: Path | str) -> FileIO:
    """`path` for adding to its end, unbuffered; made where it is missing.

    Raises:
        OSError: As `open_regular`.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
        return FileIO(descriptor, "ab")
    except OSError:
        os.close(descriptor)
        raise


def read_regular(path: Path | str, most: int) -> bytes:
    """The whole content of `path`.

    Args:
        path: A regular file, or a link to one.
        most: Bytes that it may have.

    Raises:
        OSError: As `open_regular`; also where it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, most) + 1) if size <= most else b""
        while content and len(content) <= most and (more := file.read(min(most + 1 - len(content), _CHUNK))):
            content += more
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"it has {max(size, len(content)):,} bytes, and at most {most:,} are read", str(path))
    return content


def read_text(path: Path | str, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The whole content of a text file of at most `MOST_TEXT` bytes.

    Raises:
        OSError: As `read_regular`.
        UnicodeDecodeError: It is in another encoding.
    """
    with TextIOWrapper(BytesIO(read_regular(path, MOST_TEXT)), encoding, errors) as file:  # every kind of line end becomes one
        return file.read()


def _require_regular(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file", str(path))
