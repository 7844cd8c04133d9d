from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from mapet.engine.callbacks import Monitor
from mapet.errors import InterruptedRunError
from mapet.health.signs import VitalSigns
from mapet.pretraining.training import PreTraining
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.token_source import OnlineTokens
from tests.tiny import CPU, tiny_objective, tiny_settings, tiny_source, tiny_tokenizer, tiny_trainer

VITAL = ("update/", "bits_", "effective", "accuracy")


def test_a_continued_run_shows_the_same_signs(tmp_path: Path, store) -> None:
    settings = tiny_settings(training__steps=12, mechanics__log_every=2, mechanics__checkpoint_every=6)
    tiny_trainer(tmp_path / "whole", store, settings, monitors=[VitalSigns(evaluate_every=4)]).run()
    tiny_trainer(tmp_path / "parts", store, settings, monitors=[VitalSigns(evaluate_every=4)]).run()
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000012")
    again = tiny_trainer(tmp_path / "parts", store, settings, monitors=[VitalSigns(evaluate_every=4)])
    assert again.first_step == 6
    again.run()
    signs = [
        [{name: value for name, value in entry.items() if name.startswith(VITAL)} for entry in RunDirectory(path).read_metrics()]
        for path in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert signs[0] == signs[1]
    assert ["effective_rank/patches" in entry for entry in signs[0]] == [False, True, False, True, False, False]


def on_the_fly(path: Path) -> PreTraining:
    settings = tiny_settings(view__name="online", training__steps=12, mechanics__log_every=2, mechanics__checkpoint_every=12)
    tokens, signs = OnlineTokens(tiny_tokenizer(), CPU), VitalSigns(2, 4)
    return PreTraining(tiny_objective(settings), tiny_source(), tokens, settings, RunDirectory(path), CPU, monitors=[signs])


def signs_and_loss(path: Path) -> list[dict]:
    return [
        {name: value for name, value in entry.items() if name.startswith((*VITAL, "loss"))}
        for entry in RunDirectory(path).read_metrics()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict]:
    """The signs of a run that nothing stopped."""
    path = tmp_path_factory.mktemp("whole")
    on_the_fly(path).run()
    return signs_and_loss(path)


@pytest.mark.parametrize("stop", [3, 6, 7])
def test_f21_tokens_on_the_fly_are_counted_on_after_a_stop(tmp_path: Path, whole: list[dict], stop: int) -> None:
    class Stopping(Monitor):
        def before_step(self, step, batch):
            if step == stop - 1:
                signal.raise_signal(signal.SIGTERM)

    stopped = on_the_fly(tmp_path)
    stopped.monitors.append(Stopping())
    with pytest.raises(InterruptedRunError, match=f"after step {stop}"):
        stopped.run()
    on_the_fly(tmp_path).run()
    assert signs_and_loss(tmp_path) == whole
    assert any("bits_gained" in entry for entry in whole)
