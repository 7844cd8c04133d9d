from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mapet.errors import TokenStoreError
from mapet.token_store.lock import build_lock
from mapet.token_store.read import TokenStore
from tests.token_store.planted import build, write_images

HOLDER = """
    import sys
    from pathlib import Path
    from mapet.token_store.lock import build_lock
    with build_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_two_builds_of_one_store_are_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    folder, store = write_images(tmp_path / "images", 3), tmp_path / "store"
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TokenStoreError, match=rf"store is being built by process {holder.pid} on .*give another --out"):
            build(folder, store)
        build(folder, tmp_path / "other")
        holder.kill()
    build(folder, store)
    assert not (tmp_path / ".store.lock").exists()
    assert len(TokenStore.open(store)) == 3


def test_the_lock_is_released_behind_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), build_lock(tmp_path / "store"):
        raise KeyError
    with build_lock(tmp_path / "store"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, whoever held the lock before may remove its file."""
    lock, removed = fcntl.flock, []

    def lock_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / ".store.lock").unlink())
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with build_lock(tmp_path / "store"):
        assert str(os.getpid()) in (tmp_path / ".store.lock").read_text()
        with pytest.raises(TokenStoreError, match="is being built"), build_lock(tmp_path / "store"):
            pass


@pytest.mark.parametrize("call", ["open", "flock"])
def test_where_there_are_no_locks_stores_are_built_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS if call == "open" else errno.ENOLCK, "not here")

    with monkeypatch.context() as patch:
        patch.setattr("mapet.token_store.lock.os.open" if call == "open" else "mapet.token_store.lock.fcntl.flock", refuse)
        with build_lock(tmp_path / "store"):
            entered = True
    assert entered
