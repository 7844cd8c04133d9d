from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("title", ["knnn", "linear:papr", "transfer:knnn"])
def test_a_wrong_name_is_refused_before_torch_is_imported(title: str) -> None:
    program = f"""
import sys
from mapet.cli.evaluate import evaluate
from mapet.errors import SettingsError
try:
    evaluate({title!r}, "RUN")
except SettingsError as error:
    assert "Did you mean" in str(error), error
    print("torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


def test_a_protocol_of_ones_own_needs_no_dot(tmp_path, monkeypatch) -> None:
    from mapet.evaluation.presets import protocol_of

    (tmp_path / "my_probe.py").write_text("from mapet.evaluation.probes.knn import KNN\n\n\nclass Mine(KNN):\n    name = 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert protocol_of("my_probe:Mine").name == "mine"
