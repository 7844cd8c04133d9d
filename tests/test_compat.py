"""timm can be imported beside a torchvision that fits torch and beside one that does not."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from mapet import compat
from tests.command import environment

PLAIN_IMPORT_WORKS = """
import sys, torch
try:
    import torchvision
    works = True
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
    works = False
for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
    del sys.modules[name]
"""
WITHOUT_OPERATORS = """
import torch
refused = []
def refuse(path):
    refused.append(path)
    raise OSError("libcudart.so cannot be opened")
torch.ops.load_library = refuse
"""
BROKEN = """
assert refused and not works
"""
ASK = """
from mapet.compat import DECLARED_OPERATORS, VisionTransformer, timm
assert DECLARED_OPERATORS is (not works), (DECLARED_OPERATORS, works)
import torchvision.transforms
assert torch.ops.torchvision.nms is not None
"""
DECLARE = """
if not works:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    works = True
"""


SCRIPTS = {
    "working": PLAIN_IMPORT_WORKS + DECLARE + ASK,
    "broken": WITHOUT_OPERATORS + PLAIN_IMPORT_WORKS + BROKEN + ASK,
}
# Each script in a process of its own, forked from one that has imported torch and no torchvision.
FORK_EACH = """
import json, os, sys, traceback
import torch, torch._dynamo
assert not {"torchvision", "timm", "mapet.compat"} & {*sys.modules}
for name, script in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        try:
            exec(script, {"__name__": "__main__"})
        except BaseException:
            print(name, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=": ", flush=True)
"""


@pytest.fixture(scope="module")
def printed() -> str:
    command = [sys.executable, "-c", FORK_EACH, json.dumps(SCRIPTS)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_operators_are_declared_only_where_the_plain_import_fails(name: str, printed: str) -> None:
    assert f"{name}: 0" in printed.splitlines(), printed


@pytest.mark.parametrize("error", [RuntimeError("CUDA driver is too old"), ImportError("no torchvision")])
def test_other_errors_are_not_swallowed(error: Exception, monkeypatch) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    modules = dict(sys.modules)
    with pytest.raises(type(error), match=str(error)):
        compat.import_torchvision()
    assert dict(sys.modules) == modules


def test_a_second_call_declares_nothing() -> None:
    assert compat.import_torchvision() is False
