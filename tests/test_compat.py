"""timm can be imported beside a torchvision that fits torch and beside one that does not."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from mapet import compat

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


@pytest.mark.parametrize(
    "script",
    [PLAIN_IMPORT_WORKS + ASK, PLAIN_IMPORT_WORKS + DECLARE + ASK, WITHOUT_OPERATORS + PLAIN_IMPORT_WORKS + BROKEN + ASK],
    ids=["as installed", "working", "broken"],
)
def test_operators_are_declared_only_where_the_plain_import_fails(script: str) -> None:
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


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
