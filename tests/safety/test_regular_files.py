"""F7: pipes, sockets, devices and folders in the place of files end in words, and no module opens files in another way."""

from __future__ import annotations

import ast
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import mapet
from mapet.data.masked import open_segmentation
from mapet.data.sources import open_source
from mapet.errors import DataError, MapetError, StorageError
from mapet.evaluation.outcomes import load_outcomes
from mapet.runtime.jsonl import append_line
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.format import TokenSpace
from mapet.token_store.parts import PartFolder
from mapet.tokenizers.clustering.points import StoredPoints
from mapet.tokenizers.vq_kd.state import load_earlier_state
from mapet.tokenizers.vq_kd.teacher import saved_teacher
from tests.data.containers import Labelled, as_dataset
from tests.data.images import png
from tests.fuzz.readers import READERS

SOURCE = Path(mapet.__file__).parent
# Which readers of files the modules may call. Everything else goes through `runtime.regular` and `runtime.tensors`.
ALLOWED = {
    ("runtime/tensors.py", "safe_open"),  # behind `open_regular`
    ("runtime/tensors.py", "load_file"),
    ("token_store/format.py", "np.load"),
    ("token_store/parts.py", "np.load"),  # of what `open_regular` opened
    ("checkpoints/archive.py", "torch.load"),  # behind `open_regular`
    ("checkpoints/archive.py", "zipfile.ZipFile"),
    ("data/tar_index.py", "tarfile.open"),  # of what `open_regular` opened
    ("data/decode.py", "Image.open"),  # of bytes
    ("data/parquet.py", "ParquetFile"),  # behind `open_regular`
    ("runtime/regular.py", "os.open"),
    ("runtime/lock.py", "os.open"),  # of its own lock, without blocking
    ("runtime/files.py", "os.open"),  # to flush what was just written
    ("config/recipes.py", "read_text"),  # of the package's own files, and behind `is_file`
    ("evaluation/presets.py", "read_text"),
    ("compare/published.py", "read_text"),
    ("runtime/run_directory.py", "read_text"),  # /proc/cpuinfo
    ("data/hub.py", "fsspec.open"),  # of the Hub
    ("data/hub.py", "pyarrow.memory_map"),  # of what `datasets` opened before
}
READING = {"load_file", "safe_open", "np.load", "np.memmap", "np.fromfile", "np.loadtxt", "torch.load"}
READING |= {"torch.from_file", "Image.open", "zipfile.ZipFile", "tarfile.open", "os.open", "io.open", "fsspec.open", "ParquetFile"}
READING |= {"pyarrow.memory_map", "codecs.open", "gzip.open", "fileinput.input", "linecache.getlines"}


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Calls that read files, by name and line; writing ones (mode "w", "a", "x", "r+") are none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        short = name.rpartition(".")[2]
        if name in READING or (short in ("read_text", "read_bytes") and isinstance(node.func, ast.Attribute)):
            yield (name if name in READING else short), node.lineno
        elif name == "open" or (short == "open" and isinstance(node.func, ast.Attribute) and _is_of_path(node)):
            yield "open", node.lineno


def _is_of_path(node: ast.Call) -> bool:
    """Whether it is `path.open()` or `path.open("rb")`; TokenStore.open(path) and others take no mode."""
    modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    constants = [value.value for value in modes if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    if any({*mode} & {*"wax+"} for mode in constants):
        return False
    return not node.args or any({*mode} <= {*"rbt"} for mode in constants)


def test_files_are_opened_by_the_helpers_alone() -> None:
    """F7: also of modules that are written later."""
    found = [
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for name, line in calls(path)
        if (path.relative_to(SOURCE).as_posix(), name) not in ALLOWED
    ]
    assert found == [], "use mapet.runtime.regular or mapet.runtime.tensors"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("with path.open('rb') as file: pass", "open"),
        ("open(name)", "open"),
        ("self.path.open()", "open"),
        ("path.read_bytes()", "read_bytes"),
        ("load_file(x)", "load_file"),
        ("np.load(x, mmap_mode='r')", "np.load"),
        ("path.open('w')", None),
        ("TokenStore.open(x)", None),
    ],
)
def test_the_check_sees_the_ways_to_open_files(tmp_path: Path, line: str, name: str | None) -> None:
    (tmp_path / "a.py").write_text(line)
    assert [found for found, _ in calls(tmp_path / "a.py")] == ([name] if name else [])


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def plug(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(before)


@pytest.fixture(autouse=True)
def at_most_20_seconds() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("made")
            READERS[name].make(folders[name])
        return folders[name]

    return make


@pytest.mark.parametrize("replace", [pipe, folder, endless, plug])
@pytest.mark.parametrize("name", [name for name in READERS if name not in ("images", "report", "--set", "pickle")])
def test_every_file_that_is_no_regular_one_ends_in_words(name: str, replace, made: Callable[[str], Path]) -> None:
    """F7: every file of every kind of input, one after the other; what is not needed may be passed over."""
    root = made(name)
    threads = threading.active_count()
    for file in sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in (".png", ".partial")):
        aside = root / "aside"
        file.rename(aside)
        replace(file)
        try:
            READERS[name].read(root)
        except MapetError as error:
            assert str(error), file  # noqa: PT017
        finally:
            file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
            aside.rename(file)
    READERS[name].read(root)
    assert threading.active_count() <= threads + 1


@pytest.mark.parametrize("replace", [pipe, folder, endless, plug])
def test_other_files_that_are_no_regular_ones(tmp_path: Path, replace) -> None:
    """F7."""
    file = tmp_path / "x"
    replace(file)
    model = torch.nn.Linear(2, 2)
    for read in (
        lambda: load_outcomes(file, "pre-trained"),
        lambda: (
            load_earlier_state(file, model, torch.optim.AdamW(model.parameters()), 4)
            if replace is not folder
            else load_outcomes(file, "random")
        ),
        lambda: StoredPoints(file),
        lambda: RunDirectory(tmp_path).metrics_lines() if file.rename(tmp_path / "metrics.jsonl") else None,
    ):
        with pytest.raises(MapetError, match=r"regular file|named pipe|device|folder|socket|directory"):
            read()
    with pytest.raises(StorageError, match=r"metrics\.jsonl: "):
        append_line(tmp_path / "metrics.jsonl", {"step": 1})


def test_a_part_that_is_a_pipe_is_a_damaged_part(tmp_path: Path) -> None:
    """F7."""
    parts = PartFolder(tmp_path / "store", TokenSpace("0" * 64, {}, {}, (2, 2), 5))
    parts._folder.mkdir(parents=True)
    os.mkfifo(parts._folder / "a.npz")
    assert parts.covered("a.npz") == set()
    assert parts.read("a.npz") is None
    assert parts.names() == []


def test_a_teacher_whose_weights_are_a_pipe_is_damaged(tmp_path: Path) -> None:
    """F7."""
    (tmp_path / "t").mkdir()
    os.mkfifo(tmp_path / "t" / "settings.json")
    with pytest.raises(MapetError, match="is damaged"):
        saved_teacher(tmp_path / "t")


def test_a_list_of_images_with_masks_that_is_a_pipe(tmp_path: Path) -> None:
    """F7."""
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    for name in ("train.txt", "val.txt"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(MapetError):
        open_segmentation(str(tmp_path))


def test_a_folder_of_save_to_disk_that_holds_a_pipe(tmp_path: Path) -> None:
    """F7: `datasets` would wait for it."""
    as_dataset([Labelled("1.png", png(1), 0), Labelled("2.png", png(2), 1)]).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="named pipe"):
        open_source(tmp_path / "saved", "all")
