"""F6: one writer a folder; the second one refuses and names the first."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapet.errors import InUseError, StorageError
from mapet.runtime import lock
from mapet.runtime.lock import only_writer

HOLDER = """
    import sys
    from mapet.runtime.lock import only_writer
    with only_writer(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextmanager
def another_writer(out: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of `out` until the block ends."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


@pytest.mark.parametrize("kind", ["new", "folder", "file"])
def test_f6_the_second_writer_refuses_and_names_the_first(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    if kind == "file":
        out.write_text("older")
    with another_writer(out) as process:
        words = rf"out is being written by process {process.pid} on {socket.gethostname()} since 20\d\d-.*\(-c .*\)\. Wait until"
        for spelling in (out, tmp_path / "." / "other" / ".." / "out"):
            with pytest.raises(InUseError, match=words) as caught, only_writer(spelling):
                pass
            assert caught.value.exit_code == 2
        with only_writer(tmp_path / "another"):
            pass


def test_f6_a_link_to_the_folder_has_its_lock(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with another_writer(tmp_path / "out"), pytest.raises(InUseError), only_writer(tmp_path / "link"):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_f6_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, number: int) -> None:
    out = tmp_path / "new" / "out"
    with another_writer(out) as process:
        process.send_signal(number)
        process.wait()
        assert (tmp_path / "new" / ".out.lock").is_file()
        with only_writer(out):
            assert f"process {os.getpid()} " in (tmp_path / "new" / ".out.lock").read_text()
    assert [*(tmp_path / "new").iterdir()] == []


def test_f6_a_child_of_a_killed_process_does_not_keep_its_lock(tmp_path: Path) -> None:
    """Loader workers are forked, and outlive a killed parent by seconds."""
    parent = """
        import os, sys, time
        from mapet.runtime.lock import only_writer
        with only_writer(sys.argv[1]):
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(60)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(parent), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with only_writer(tmp_path / "out"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_nothing_is_left_behind_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b" / "out"):
        raise KeyError
    assert [*tmp_path.iterdir()] == []
    with only_writer(tmp_path / "a" / "out"):
        (tmp_path / "a" / "out").write_text("kept")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def refusing(number: int, name: str):
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    return refuse


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EROFS, "make it writable"), (errno.EACCES, "make it writable"), (errno.ENOSPC, "make room")]
)
def test_f11_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, number: int, remedy: str, monkeypatch) -> None:
    monkeypatch.setattr(os, "open", refusing(number, ".lock"))
    with pytest.raises(StorageError, match=f"Cannot write .*out: {os.strerror(number)}.*{remedy}"), only_writer(tmp_path / "out"):
        pytest.fail("the work began")


def test_f10_a_disk_without_room_for_the_name_of_the_holder_keeps_no_lock(tmp_path: Path, monkeypatch) -> None:
    """F10: an empty file still fits on a full disk."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"No space left on device.*make room"), only_writer(tmp_path / "a" / "out"):
        pytest.fail("the work began")
    monkeypatch.undo()
    assert [*tmp_path.iterdir()] == []


def test_f11_a_file_in_place_of_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"not a folder\. Give another --out"),
        only_writer(tmp_path / "file" / "out"),
    ):
        pytest.fail("the work began")


def test_f11_a_folder_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    with pytest.raises(StorageError, match="the folder is not writable"), only_writer(tmp_path):
        pytest.fail("the work began")


def test_where_only_the_folder_itself_can_be_written_the_lock_lies_in_it(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "open", refusing(errno.EACCES, ".out.lock"))
    with only_writer(out):
        assert (out / ".lock").is_file()
        with pytest.raises(InUseError, match=f"process {os.getpid()} on "), only_writer(out):
            pass
    assert [*out.iterdir()] == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_stated(tmp_path: Path, number: int, monkeypatch, capsys) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_writer(tmp_path / "out"):
        pass
    assert "has no locks" in capsys.readouterr().err


def test_control_characters_of_the_holder_are_not_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mapet", "\x1b[2J"])
    with only_writer(tmp_path / "out"):
        with pytest.raises(InUseError) as caught, only_writer(tmp_path / "out"):
            pass
    assert "\x1b" not in str(caught.value)
