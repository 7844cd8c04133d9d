"""Files that are either complete or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mapet.errors import StorageError
from mapet.runtime.regular import open_regular

MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)


def remedy(error: OSError | None) -> str:
    """What helps where nothing could be written: room, or permission."""
    return "make it writable" if error is not None and error.errno in MAY_NOT else "make room"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while writing `path` into a StorageError with the free space."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}, not a folder. Give another --out.") from error
    except OSError as error:
        free = None if error.errno in MAY_NOT else _free_bytes(path)
        room = "" if free is None else f" {free / 2**20:.0f} MiB are free there."
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}.{room} What was written before is intact; {remedy(error)} (or give "
            "another --out) and run the same command again."
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes the place of `path`, on failure it is removed."""
    path = Path(path)
    partial = _beside(path, f"{os.getpid()}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, glob.escape(path.name))
        try:
            yield partial
            _flush(partial)
            os.replace(partial, path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it becomes `path` (replacing an older one), on failure it is removed.

    Between taking an older folder away and putting the new one there, neither is at `path`; `recover` puts the older one back if
    the writer died just then. Call it before reading such a folder.
    """
    path = Path(path)
    partial = _beside(path, f"{os.getpid()}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if recover(path).is_file():
            raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name")
        remove_leftovers(path.parent, glob.escape(path.name))
        partial.mkdir()
        try:
            yield partial
            readable = partial.stat().st_mode & 0o666
            for file in [*partial.rglob("*"), partial]:
                if file.is_file():
                    file.chmod(readable)  # safetensors lets nobody else read what it writes
                _flush(file)
            _put_in_place(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def recover(path: Path | str) -> Path:
    """Returns `path`, where the older folder is put back if whoever was about to replace it died in between."""
    path = Path(path)
    aside = _beside(path, "replaced")
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        with suppress(OSError):  # another process was faster
            os.replace(aside, path)
    return path


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes what killed writers of the names that match `pattern` left in `folder`; living writers keep theirs."""
    for partial in folder.glob(f".{pattern}.*.partial"):
        process = partial.name.split(".")[-2]
        if process.isdigit() and (int(process) == os.getpid() or not _is_alive(int(process))):
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8; what a file name holds besides is written as \\udc80."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented, with a final newline; in ASCII, so that any file name comes back as it was."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def home_folder() -> Path:
    """Where what belongs to no run is kept: MAPET_HOME, by default ~/.cache/mapet."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MAPET_HOME") or f"{cache}/mapet").expanduser()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, ending: str) -> Path:
    path = path.absolute()  # "." has no name of its own
    return path.with_name(f".{path.name}.{ending}")


def _put_in_place(partial: Path, path: Path) -> None:
    """Makes `partial` the folder at `path`; an older one is removed only when that is done and on disk."""
    aside = _beside(path, "replaced")
    while True:
        with suppress(FileNotFoundError):
            os.replace(path, aside)
        try:
            os.replace(partial, path)
            break
        except OSError:
            if not path.exists():  # else a reader has just put the older one back
                raise
    _flush(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int | None:
    for folder in [path, *path.parents]:
        if folder.exists():
            return shutil.disk_usage(folder).free
    return None
