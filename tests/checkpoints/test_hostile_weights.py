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
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch

from mapet.checkpoints.archive import read_tensors
from mapet.errors import ModelError
from tests.checkpoints.hostile import legacy, name, read_all, text, write_all, zip_of
from tests.checkpoints.published import save
from tests.distributed.ranks import forked

SECONDS, MEGABYTES = 10, 150  # of a processor


def test_small_hostile_files_end_soon_and_in_words(tmp_path):
    (folder := tmp_path / "files").mkdir()
    files = write_all(folder)
    process = forked(read_all, folder, tmp_path / "rows")
    process.join(170)
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in (tmp_path / "rows").read_text().splitlines())}
    assert set(rows) == set(files)
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
        with pytest.raises(ModelError, match=r"its pickle calls math\.floor"):
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
    with pytest.raises(ModelError, match=rf"its pickle calls {re.escape(asked)}; .*Nothing in it was run"):
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
    with pytest.raises(ModelError, match=f"its pickle calls {re.escape(asked)}"):
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


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_of_torch_save_gives_the_same_tensors(tmp_path, protocol, zipped):
    """F12: tensors, containers, a pickled module with a passing buffer, and all the harmless values beside them."""
    module = torch.nn.BatchNorm2d(3)
    module.register_buffer("passing", torch.ones(2), persistent=False)
    beside = {kind: value for kind, value in HARMLESS.items() if kind != "function"}
    tree = {"model": torch.nn.Sequential(module, torch.nn.Linear(2, 2)), "list": [torch.ones(2), {"x": torch.zeros(3)}], **beside}
    found = []
    for number in (2, protocol):
        path = tmp_path / f"{number}.pth"
        torch.save(tree, path, pickle_protocol=number, _use_new_zipfile_serialization=zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(read_tensors(path))
    assert found[0].keys() == found[1].keys()
    assert {"model.0.weight", "model.1.bias", "list.1.x"} <= found[0].keys()
    assert "model.0.passing" not in found[1]
    for entry, value in found[0].items():
        torch.testing.assert_close(found[1][entry], value, rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_calls_in_pickles_of_every_protocol_are_not_made(tmp_path, monkeypatch, protocol, zipped):
    """F12, F23: a class named by two texts is one named by a line."""
    monkeypatch.chdir(tmp_path)
    for asked, call in (("os.system", Call(os.system, "touch ran")), ("builtins.eval", Call(eval, "open('ran', 'w')"))):
        tree = {"os": "system", "model": torch.ones(2), "more": [call, call]}
        torch.save(tree, "weights.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelError, match=rf"its pickle calls {asked}; .*Nothing in it was run"):
            read_tensors("weights.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (short("os\nsystem") + short("x") + b"\x93)R", "which is no name"),
        (short("posix") + b"N" + short("system") + b"\x93)R", "not a pickle that can be read"),
        (b"\x93)R", "not a pickle that can be read"),
        (short("posix") + b"\x94" + short("system") + b"\x94h\x00h\x01\x93)R", r"its pickle calls os\.system"),
        (b"h\x07", "not a pickle that can be read"),
        (b"Nq\x05", "numbers its objects as no pickler does"),
        (b"cm\nC\n)}\x92", "NEWOBJ_EX, which torch.save does not"),
        (b"\x97", "NEXT_BUFFER, which torch.save does not"),
        (b"\x8d" + bytes(7) + b"\x40x", "not a pickle that can be read"),
        (short("x" * 255) + b"\x94" + b"h\x00" * 100_000, "larger than files of weights are"),
        (b"]" + b"\x95" + bytes(8), "."),
        (b"]\x94" + b"\x8f\x94" * 100_000, "wait for their place"),
    ],
)
def test_hostile_pickles_of_protocol_4_end_in_words(tmp_path, data, message):
    """F12, F17."""
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        for record, content in {"data.pkl": b"\x80\x04" + data + b".", "version": b"3\n", "data/0": bytes(16)}.items():
            archive.writestr(f"archive/{record}", content)
    with pytest.raises(ModelError, match=message):
        read_tensors(tmp_path / "weights.pth")


def test_a_package_of_ones_own_called_code_is_no_harm(tmp_path):
    zip_of(b"}" + text("x") + name("code.models.vit", "Net") + b")R" + b"s", tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="holds no tensors"):
        read_tensors(tmp_path / "weights.pth")


def test_a_pickle_alone_is_no_file_of_weights(tmp_path):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(ModelError, match=r"as neither safetensors nor torch\.save"):
        read_tensors(tmp_path / "plain.pkl")
