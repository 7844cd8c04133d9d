"""A pickle describes and nothing more; one that would break Python is refused before it is read."""

from __future__ import annotations

import argparse
import collections
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

import numpy as np
import pytest
import torch

from mapet.errors import ModelError
from mapet.models import inert_pickle
from mapet.models.inert_pickle import Inert, load_pickle


class Listed(list):
    class Inner:
        pass


class Colour(enum.Enum):
    RED = 1


def max_norm(value: float) -> float:
    return value


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def named(module: str, name: str, protocol: int) -> bytes:
    """A pickle that calls `module.name`, whether it exists or not, with the argument "x"."""
    if protocol < 4:
        return b"\x80\x02c%s\n%s\nX\x01\x00\x00\x00x\x85R." % (module.encode(), name.encode())
    words = b"".join(b"\x8c%c%s" % (len(word), word.encode()) for word in (module, name))
    return b"\x80\x04" + words + b"\x93\x8c\x01x\x85R."


def test_what_is_named_stands_for_itself():
    values = {
        "args": argparse.Namespace(lr=0.1, seed={3}),
        "counted": collections.Counter(a=2),
        "defaults": collections.defaultdict(int, {"b": 1}),
        "listed": Listed("xy"),
        "function": math.sqrt,
        "partial": functools.partial(max_norm, 2.0),
        "inner": Listed.Inner,
        "member": Colour.RED,
        "when": datetime.date(2026, 1, 2),
        "where": pathlib.PurePosixPath("a/b"),
        "scalar": np.float64(2.5),
        "type": np.dtype("int8"),
        "kinds": [set, frozenset, complex, range, object, slice(1, 2)],
        "simple": types.SimpleNamespace(lr=0.1),
        "layer": torch.nn.Linear,
        "layout": torch.strided,
        "device": torch.device("cpu"),
        "ordered": collections.OrderedDict(c=1),
    }
    tree = load_pickle(pickle.dumps(values, protocol=2)).tree
    assert tree["ordered"] == {"c": 1}
    assert tree["args"].state["lr"] == 0.1
    assert tree["args"].origin == "argparse.Namespace"
    assert tree["defaults"].entries == {"b": 1}
    assert tree["listed"].entries == {0: "x", 1: "y"}
    assert tree["function"].origin == "math.sqrt"
    assert isinstance(tree["function"](4.0), Inert)
    assert tree["inner"].origin.endswith("test_inert_pickle.Listed.Inner")
    assert tree["simple"].state == {"lr": 0.1}
    assert isinstance(tree["counted"], Inert)


def test_pickles_one_behind_the_other_are_told_apart():
    content = b"12" + pickle.dumps([1], protocol=2) + pickle.dumps({"a": 2}, protocol=2) + b"rest"
    first = load_pickle(content, 2)
    second = load_pickle(content, first.end)
    assert (first.tree, second.tree, content[second.end :]) == ([1], {"a": 2}, b"rest")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "asked",
    [
        *("os.system", "os.path.join", "subprocess.Popen", "sys.exit", "shutil.rmtree", "socket.socket", "pty.spawn"),
        *("runpy.run_path", "importlib.import_module", "ctypes.CDLL", "code.interact", "webbrowser.open", "io.open"),
        *("multiprocessing.Process", "multiprocessing.util.spawnv_passfds", "operator.attrgetter", "_operator.itemgetter"),
        *(
            "functools.reduce",
            "types.FunctionType",
            "pickle.loads",
            "torch.load",
            "torch.serialization.load",
            "torch.hub.load",
            "numpy.testing._private.x.runstring",
        ),
        *(f"builtins.{name}" for name in ("eval", "exec", "open", "__import__", "compile", "map", "type", "setattr", "input")),
    ],
)
def test_names_that_do_harm_are_refused(asked, protocol):
    module, _, name = asked.rpartition(".")
    with pytest.raises(ModelError, match=rf"asks for {re.escape(asked.replace('_operator', 'operator'))} to be called"):
        load_pickle(named(module, name, protocol))


@pytest.mark.parametrize(
    ("module", "name", "asked"),
    [
        ("posix", "system", "os.system"),
        ("nt", "system", "os.system"),
        ("__builtin__", "eval", "builtins.eval"),
        ("torch", "serialization.os.system", "torch.serialization.os.system"),
        ("timm.models", "_hub.os.system", "timm.models._hub.os.system"),
        ("timm.layers", "Mlp.__init__.__globals__", "timm.layers.Mlp.__init__"),
        ("pathlib", "Path.touch", "pathlib.Path.touch"),
        ("builtins", "getattr", "builtins.getattr"),
    ],
)
def test_other_ways_to_the_same_names_are_refused(module, name, asked):
    with pytest.raises(ModelError, match=f"asks for {re.escape(asked)}"):
        load_pickle(named(module, name, 4))


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (Call(os.system, "true"), "os.system"),
        (
            Call(getattr, Call(getattr, torch.nn.Module, "forward"), "__globals__"),
            "torch.nn.modules.module.Module.forward.__globals__",
        ),
        (Call(getattr, pathlib.Path, "touch"), "pathlib.Path.touch"),
        (Call(getattr, {}, "get"), "builtins.getattr"),
        (functools.partial(os.system, "true"), "os.system"),
        (operator.attrgetter("x"), "operator.attrgetter"),
        (pathlib.PurePosixPath("a").joinpath, "PurePosixPath.joinpath"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_that_call_what_does_harm_are_refused(value, asked, protocol):
    with pytest.raises(ModelError, match=rf"asks for \S*{re.escape(asked)} to be called"):
        load_pickle(pickle.dumps({"x": [value]}, protocol=protocol))


def test_a_package_of_ones_own_called_code_is_no_harm():
    assert load_pickle(named("code.models.vit", "Net", 2)).tree.origin == "code.models.vit.Net"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}" + b")" + b"\x85" * 400_000 + b"Ns.", "400000 tuples"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
        (b"\x80\x02\x82\x01.", "extension registry"),
        (b"\x80\x02" + b"}" * 100, "not a pickle"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", "attributes of a function"),
        (b"", "not a pickle"),
        (b"}" * 100_001 + b".", "not a pickle"),
        (b"".join(b"cm\nn%d\n0" % number for number in range(10_001)) + b"}.", "more than 10000 classes"),
    ],
    ids=["tuples", "memo", "extension", "cut off", "function", "empty", "large", "classes"],
)
def test_a_pickle_that_would_break_python_is_refused(monkeypatch, content, message):
    if message == "not a pickle":
        monkeypatch.setattr(inert_pickle, "_MOST_BYTES", 100_000)
    with pytest.raises(ModelError, match=message):
        load_pickle(content)
