"""F12, F23: small hostile files end soon, in words, and nothing that a pickle names is imported or run."""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import datetime
import enum
import functools
import math
import operator
import os
import pathlib
import pickle
import re
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from mapet.checkpoints.archive import read_tensors
from mapet.errors import ModelError
from tests.checkpoints.hostile import legacy, name, text, write_all, zip_of
from tests.checkpoints.published import save

SECONDS, MEGABYTES = 30, 700  # on a machine that does other things too


def test_small_hostile_files_end_soon_and_in_words(tmp_path):
    files = write_all(tmp_path)
    program = [sys.executable, "-m", "tests.checkpoints.hostile", str(tmp_path)]
    run = subprocess.run(program, capture_output=True, text=True, timeout=170, check=False)
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in run.stdout.splitlines())}
    assert set(rows) == set(files), run.stderr[-2000:]
    bad = [
        (file, *row)
        for file, row in rows.items()
        if not row[2].startswith("refused") or float(row[0]) > SECONDS or int(row[1]) > MEGABYTES
    ]
    assert not bad


class Listed(dict):
    class Inner:
        pass


class Colour(enum.Enum):
    RED = 1


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def norm(value: float) -> float:
    return value


HARMLESS = {
    "args": argparse.Namespace(lr=0.1, seed={3}),
    "counted": collections.Counter(a=2),
    "defaults": collections.defaultdict(int, {"b": 1}),
    "last": collections.deque([0.5], maxlen=3),
    "items": Listed(x=1),
    "function": math.floor,
    "partial": functools.partial(norm, 2.0),
    "inner": Listed.Inner,
    "member": Colour.RED,
    "when": datetime.date(2026, 1, 2),
    "where": pathlib.PurePosixPath("a/b"),
    "scalar": np.float64(2.5),
    "array": np.arange(3),
    "type": np.dtype("int8"),
    "kinds": [set, frozenset, complex, range, object, slice(1, 2), 1j, frozenset({1}), b"bytes"],
    "simple": types.SimpleNamespace(lr=0.1),
    "layer": torch.nn.Linear,
    "layout": torch.strided,
    "device": torch.device("cpu"),
    "size": torch.Size([2, 3]),
    "ordered": collections.OrderedDict(c=1),
    "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HARMLESS)
def test_values_beside_the_weights_do_no_harm(tmp_path, monkeypatch, kind, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"w": torch.ones(2)}, "beside": HARMLESS[kind]}, path, _use_new_zipfile_serialization=zipped)
    imported = []
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda *given, **more: (imported.append(given[0]), real(*given, **more))[1])
    if kind == "function":  # Python's own functions are refused by name, though this one does nothing
        with pytest.raises(ModelError, match=r"asks for math\.floor to be called"):
            read_tensors(path)
    else:
        found = read_tensors(path)
        assert torch.equal(found["model.w"], torch.ones(2))
    assert not {"tests.checkpoints.test_hostile_weights", "argparse", "collections"} & set(imported)


NAMES = [
    *("os.system", "os.path.join", "subprocess.Popen", "sys.exit", "shutil.rmtree", "socket.socket", "pty.spawn"),
    *("runpy.run_path", "importlib.import_module", "ctypes.CDLL", "code.interact", "webbrowser.open", "io.open"),
    *("multiprocessing.Process", "multiprocessing.util.spawnv_passfds", "operator.attrgetter", "_operator.itemgetter"),
    *("functools.reduce", "pickle.loads", "torch.load", "torch.serialization.load", "torch.hub.load", "bdb.Bdb", "cProfile.run"),
    *("torch.jit.load", "numpy.testing._private.x.runstring", "torch.utils.cpp_extension.load"),
    *("asyncio.run", "logging.config.fileConfig", "tempfile.mkdtemp", "zipfile.ZipFile", "sqlite3.connect", "ssl.SSLContext"),
    *("timeit.timeit", "doctest.testmod", "venv.create", "xmlrpc.client.x"),
    *(f"builtins.{name}" for name in ("eval", "exec", "open", "__import__", "compile", "map", "type", "setattr", "input")),
]  # fmt: skip


@pytest.mark.parametrize("form", [zip_of, legacy])
@pytest.mark.parametrize("asked", NAMES)
def test_names_that_run_code_are_named(tmp_path, asked, form):
    module, _, attribute = asked.rpartition(".")
    form(b"}" + text("x") + name(module, attribute) + text("x") + b"\x85Rs", tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=rf"asks for {re.escape(asked)} to be called; .*Nothing in it was run"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("module", "attribute", "asked"),
    [("posix", "system", "os.system"), ("nt", "system", "os.system"), ("__builtin__", "eval", "builtins.eval"),
     ("commands", "getoutput", "subprocess.getoutput"), ("pathlib", "Path.touch", "pathlib.Path.touch"),
     ("timm.models", "_hub.os.system", "timm.models._hub.os.system"), ("torch", "hub.os.system", "torch.hub.os.system"),
     ("collections", "namedtuple.__globals__", "collections.namedtuple.__globals__")],
)  # fmt: skip
def test_other_names_of_the_same_are_named(tmp_path, module, attribute, asked):
    zip_of(b"}" + text("x") + name(module, attribute) + text("x") + b"\x85Rs", tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=f"asks for {re.escape(asked)}"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "touch ran"),
        Call(eval, "open('ran', 'w')"),
        Call(getattr, Call(getattr, torch.nn.Module, "forward"), "__globals__"),
        Call(getattr, pathlib.Path, "touch"),
        functools.partial(os.mkdir, "ran"),
        operator.attrgetter("x"),
        Call(functools.partial(os.mkdir, "ran")),
        Call(pathlib.Path("ran").touch),
        Call(torch.nn.Module),
        Call(torch.utils.data.get_worker_info),
    ],
    ids=range(10),
)
def test_objects_that_call_what_runs_code_run_nothing(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    path = save({"model": {"w": torch.ones(2)}, "x": [value]}, tmp_path / "weights.pth")
    with contextlib.suppress(ModelError):
        assert torch.equal(read_tensors(path)["model.w"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def test_protocol_3_is_read_where_torch_does_so(tmp_path):
    """F12: without torch's warning."""
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pth", pickle_protocol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_tensors(tmp_path / "weights.pth")["w"].tolist() == [1, 1]


def test_another_protocol_than_that_of_torch_save_is_refused_in_words(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pth", pickle_protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError, match=r"of protocol 4, of which .* 2 and 3 only.*save its state dict again by torch\.save"):
            read_tensors(tmp_path / "weights.pth")


def test_a_package_of_ones_own_called_code_is_no_harm(tmp_path):
    zip_of(b"}" + text("x") + name("code.models.vit", "Net") + b")R" + b"s", tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="holds no tensors"):
        read_tensors(tmp_path / "weights.pth")


def test_a_pickle_alone_is_no_file_of_weights(tmp_path):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(ModelError, match=r"as neither safetensors nor torch\.save"):
        read_tensors(tmp_path / "plain.pkl")
