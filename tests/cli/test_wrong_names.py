from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from mapet.cli.main import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "words",
    [
        "evaluate knnn RUN",
        "evaluate linear:papr RUN",
        "evaluate transfer:knnn RUN",
        "pretrain digits --recipe digitz --out RUN",
        "pretrain digits --recipe digits --set training.lrr=3 --out RUN",
    ],
)
def test_a_wrong_name_is_refused_before_torch_is_imported(words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *words.replace("RUN", str(tmp_path / "run")).split()]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "False\n")
    assert "Did you mean" in found.stderr


def test_a_protocol_of_ones_own_needs_no_dot(tmp_path, monkeypatch) -> None:
    from mapet.evaluation.presets import protocol_of

    (tmp_path / "my_probe.py").write_text("from mapet.evaluation.probes.knn import KNN\n\n\nclass Mine(KNN):\n    name = 'mine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert protocol_of("my_probe:Mine").name == "mine"
