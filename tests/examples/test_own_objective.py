"""The examples of objectives of one's own keep every promise, and train."""

from __future__ import annotations

from contextvars import copy_context
from importlib import import_module
from pathlib import Path

import pytest

from mapet.registry import allow
from mapet.report.html import write_report
from mapet.runtime.run_directory import RunDirectory
from tests.contracts import objective_suite as suite
from tests.contracts.tiny_objectives import build
from tests.data_root import CHECKOUT

EXAMPLES = CHECKOUT / "examples"
NAMES = ("own_objective:Rotation", "own_token_objective:EveryToken")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    allow(*NAMES)


def _cases() -> list:
    """Every check of every example; the examples are importable while the checks are chosen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        return [
            pytest.param(name, check, id=f"{name.partition(':')[2]}-{check.__name__}")
            for name in NAMES
            for check in copy_context().run(suite.checks_of, name)
        ]


@pytest.mark.parametrize(("name", "check"), _cases())
def test_it_passes_the_suite(name: str, check: suite.Check) -> None:
    check(name)


def test_a_token_objective_that_hides_nothing_is_not_taken_for_a_masked_one() -> None:
    checks = suite.checks_of("own_token_objective:EveryToken")
    assert suite.targets_are_the_tokens_of_their_patches in checks
    assert suite.content_of_a_target_never_reaches_its_own_prediction not in checks
    assert not hasattr(build("own_token_objective:EveryToken"), "mask_token")


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("module", [name.partition(":")[0] for name in NAMES])
def test_it_trains_on_digits(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("training.steps=10", "training.warmup_epochs=0", "backbone.options.depth=1")
    run = tmp_path / "run"
    import_module(module).main(str(run), *short, "tokenizer.vocab_size=8", "tokenizer.max_images=100")
    assert "knn (both)" in capsys.readouterr().out
    assert (run / "backbone" / "weights.safetensors").is_file()
    assert write_report([RunDirectory.existing(run)], None).is_file()


@pytest.mark.parametrize("module", [name.partition(":")[0] for name in NAMES])
def test_it_is_short(module: str) -> None:
    assert len((EXAMPLES / f"{module}.py").read_text(encoding="utf-8").splitlines()) < 80
