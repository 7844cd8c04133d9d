"""A pickle describes and nothing more; one that would break Python is refused before it is read."""

from __future__ import annotations

import argparse
import collections
import os
import pickle

import pytest

from mapet.errors import ModelError
from mapet.models import inert_pickle
from mapet.models.inert_pickle import Inert, load_pickle


class Listed(list):
    pass


def test_what_is_named_stands_for_itself():
    values = {
        "args": argparse.Namespace(lr=0.1, seed={3}),
        "counted": collections.Counter(a=2),
        "defaults": collections.defaultdict(int, {"b": 1}),
        "listed": Listed("xy"),
        "function": os.system,
        "ordered": collections.OrderedDict(c=1),
    }
    tree = load_pickle(pickle.dumps(values, protocol=2)).tree
    assert tree["ordered"] == {"c": 1}
    assert tree["args"].state["lr"] == 0.1
    assert tree["args"].origin == "argparse.Namespace"
    assert tree["defaults"].entries == {"b": 1}
    assert tree["listed"].entries == {0: "x", 1: "y"}
    assert tree["function"].origin in ("posix.system", "nt.system")
    assert isinstance(tree["function"]("true"), Inert)
    assert isinstance(tree["counted"], Inert)


def test_pickles_one_behind_the_other_are_told_apart():
    content = b"12" + pickle.dumps([1], protocol=2) + pickle.dumps({"a": 2}, protocol=2) + b"rest"
    first = load_pickle(content, 2)
    second = load_pickle(content, first.end)
    assert (first.tree, second.tree, content[second.end :]) == ([1], {"a": 2}, b"rest")


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
