from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mapet.errors import StorageError
from mapet.runtime import files
from mapet.runtime.files import atomic_directory, atomic_file, recover, write_json, write_text


@pytest.fixture(scope="module")
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_folder(path: Path, text: str) -> None:
    with atomic_directory(path) as partial:
        (partial / "inside").mkdir()
        (partial / "inside" / "file").write_text(text)


def content(path: Path) -> str:
    return (path / "inside" / "file").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'
    with suppress(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert '"a": 1' in path.read_text(encoding="utf-8")
    assert names(path.parent) == ["file.json"]


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    name = os.fsdecode("naïve ".encode() + b"caf\xe9.png")
    write_json(tmp_path / "file.json", {name: name})
    assert json.loads((tmp_path / "file.json").read_bytes()) == {name: name}
    assert (tmp_path / "file.json").read_bytes().isascii()
    write_text(tmp_path / "page.html", name)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "naïve caf\\udce9.png"


def test_folders_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    with suppress(RuntimeError), atomic_directory(path) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert content(path) == "old"
    write_folder(path, "new")
    assert content(path) == "new"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("moment", range(2))
def test_a_folder_survives_a_kill_at_any_moment_of_its_replacement(tmp_path: Path, moment: int, monkeypatch) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    replace, calls = os.replace, []

    def die(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > moment:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # whoever is killed does not clean up
        with pytest.raises(KeyboardInterrupt):
            write_folder(path, "new")
    assert path.exists() == (moment == 0)
    assert content(recover(path)) == "old"
    write_folder(path, "newer")
    assert content(path) == "newer"
    assert names(tmp_path) == ["folder"]


def test_files_in_folders_may_be_read_by_whom_the_folder_may(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "folder") as partial:
        (partial / "weights").touch(mode=0o600)
    folder, weights = (path.stat().st_mode for path in (tmp_path / "folder", tmp_path / "folder" / "weights"))
    assert weights & 0o777 == folder & 0o666


def test_a_writer_puts_an_older_folder_back_before_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    path.rename(tmp_path / ".folder.replaced")
    with pytest.raises(RuntimeError), atomic_directory(path):
        raise RuntimeError
    assert content(path) == "old"


def test_a_reader_may_put_the_older_folder_back_while_it_is_replaced(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "folder"
    write_folder(path, "old")
    replace, read = os.replace, []

    def replace_with_a_reader_between(source: Path, target: Path) -> None:
        if target == path and not read:
            monkeypatch.setattr(os, "replace", replace)
            read.append(content(recover(path)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_with_a_reader_between)
    write_folder(path, "new")
    assert read == ["old"]
    assert content(path) == "new"


def test_recover_leaves_alone_what_is_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recover(".") == Path()
    assert not recover("missing").exists()
    write_folder(tmp_path / "folder", "now")
    (tmp_path / ".folder.replaced").mkdir()
    assert content(recover(tmp_path / "folder")) == "now"
    assert names(tmp_path) == ["folder"]


def test_the_next_writer_removes_what_killed_ones_left(tmp_path: Path, dead_process: int) -> None:
    for name in (f".file.{dead_process}.partial", ".file.1.partial", ".file.other.partial", f".files.{dead_process}.partial"):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{dead_process}.partial").mkdir()
    (tmp_path / f".folder.{dead_process}.partial" / "half").touch()
    write_text(tmp_path / "file", "")
    write_folder(tmp_path / "folder", "")
    assert names(tmp_path) == [".file.1.partial", ".file.other.partial", f".files.{dead_process}.partial", "file", "folder"]


def test_a_file_in_the_place_of_a_folder_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.write_text("mine")
    with pytest.raises(StorageError, match="there is a file of that name"):
        write_folder(path, "")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("write", [write_text, write_folder], ids=["file", "folder"])
def test_a_full_disk_is_told_in_words_and_leaves_the_old_one(tmp_path: Path, write, monkeypatch) -> None:
    path = tmp_path / "thing"
    write(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"thing: No space left on device\. \d+ MiB are free.*run the same command again"):
        write(path, "new")
    assert (path.read_text() if path.is_file() else content(path)) == "old"
    assert names(tmp_path) == ["thing"]
