"""The example of an objective of one's own keeps every promise, and trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapet.registry import allow
from tests.contracts import objective_suite as suite
from tests.data_root import CHECKOUT

EXAMPLES = CHECKOUT / "examples"
NAME = "own_objective:Rotation"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    allow(NAME)


@pytest.mark.parametrize("check", suite.OF_ALL, ids=lambda check: check.__name__)
def test_it_passes_the_suite(check: suite.Check) -> None:
    check(NAME)


def test_it_trains_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import own_objective

    short = ("training.steps=10", "training.warmup_epochs=0", "backbone.options.depth=1")
    own_objective.main(str(tmp_path / "run"), *short, "tokenizer.vocab_size=8", "tokenizer.max_images=100")
    assert "knn (both)" in capsys.readouterr().out
    assert (tmp_path / "run" / "backbone" / "weights.safetensors").is_file()


def test_it_is_short() -> None:
    assert len((EXAMPLES / "own_objective.py").read_text(encoding="utf-8").splitlines()) < 80
