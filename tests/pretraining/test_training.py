from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mapet.data.decode import UnreadableImageError
from mapet.data.order import step_batches
from mapet.data.source import subset
from mapet.engine.checkpoint import newest_checkpoint
from mapet.errors import CheckpointError, DataError, InterruptedRunError, NonFiniteLossError
from mapet.pretraining.training import PreTraining
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.token_source import StoredTokens
from tests.tiny import (
    BATCH,
    IMAGES,
    TinyImages,
    assert_equal_weights,
    at_step,
    tiny_objective,
    tiny_settings,
    tiny_source,
    tiny_trainer,
    weights_of,
)


def steps_logged(trainer: PreTraining) -> list[int]:
    return [entry["step"] for entry in trainer.run_directory.read_metrics()]


def test_the_lengths_of_run_and_warm_up(tmp_path: Path, store) -> None:
    settings = tiny_settings(training__steps=None, training__epochs=2.5, training__warmup_epochs=0.5, training__warmup_steps=0)
    trainer = tiny_trainer(tmp_path, store, settings)
    assert trainer.steps_per_epoch == IMAGES // BATCH == 5
    assert (trainer.total_steps, trainer.warmup_steps, trainer.first_step) == (12, 2, 0)
    settings = tiny_settings(training__steps=None, training__epochs=0.01)
    assert tiny_trainer(tmp_path, store, settings).total_steps == 1


@pytest.mark.parametrize(("warm_up", "said"), [(1000, True), (0.2, False)])
def test_a_warm_up_that_does_not_end_is_stated(tmp_path: Path, store, capsys, warm_up: float, said: bool) -> None:
    tiny_trainer(tmp_path, store, tiny_settings(training__steps=2, training__warmup_epochs=warm_up, training__warmup_steps=0))
    assert ("does not end within the 2 steps of the run" in capsys.readouterr().err) is said


def test_fewer_images_than_a_batch_are_refused(tmp_path: Path, store) -> None:
    settings = tiny_settings(training__batch_size=IMAGES + 1)
    with pytest.raises(DataError, match="40 images, fewer than one batch of 41"):
        tiny_trainer(tmp_path, store, settings)


def test_the_loss_falls_and_every_entry_is_complete(tmp_path: Path, store) -> None:
    trainer = tiny_trainer(
        tmp_path,
        store,
        tiny_settings(training__steps=60, training__lr=1e-2, mechanics__log_every=20, mechanics__checkpoint_every=60),
    )
    trainer.run()
    entries = trainer.run_directory.read_metrics()
    assert [entry["step"] for entry in entries] == [20, 40, 60]
    assert entries[-1]["loss"] < 0.97 * entries[0]["loss"]
    for entry in entries:
        assert 0 <= entry["token_accuracy"] <= 1
        assert 0 <= entry["waiting"] <= 1
        assert entry["images_per_second"] > 0
        assert entry["epoch"] == entry["step"] / 5


def test_an_entry_is_the_mean_over_its_window(tmp_path: Path, store) -> None:
    each = tiny_trainer(tmp_path / "each", store, tiny_settings(mechanics__checkpoint_every=100))
    windows = tiny_trainer(tmp_path / "windows", store, tiny_settings(mechanics__log_every=5, mechanics__checkpoint_every=100))
    each.run()
    windows.run()
    losses = [entry["loss"] for entry in each.run_directory.read_metrics()]
    entries = windows.run_directory.read_metrics()
    assert [entry["step"] for entry in entries] == [5, 10, 12]
    means = [sum(losses[:5]) / 5, sum(losses[5:10]) / 5, sum(losses[10:]) / 2]
    assert [entry["loss"] for entry in entries] == pytest.approx(means, rel=1e-6)


def test_windows_end_with_checkpoints_so_that_a_continued_run_logs_the_same(tmp_path: Path, store) -> None:
    settings = tiny_settings(mechanics__log_every=5, mechanics__checkpoint_every=3)
    whole = tiny_trainer(tmp_path / "whole", store, settings)
    whole.run()
    killed = tiny_trainer(tmp_path / "killed", store, settings)
    at_step(killed, 10, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = tiny_trainer(tmp_path / "killed", store, settings)
    assert again.first_step == 9
    again.run()
    one, other = (
        [(entry["step"], entry["loss"], entry["token_accuracy"]) for entry in trainer.run_directory.read_metrics()]
        for trainer in (whole, again)
    )
    assert one == other
    assert [step for step, *_ in one] == [3, 5, 6, 9, 10, 12]
    shown = EventAccumulator(str(again.run_directory.tensorboard)).Reload().Scalars("loss")
    assert [event.step for event in shown] == [3, 5, 6, 9, 10, 12]
    assert [event.value for event in shown] == pytest.approx([loss for _, loss, _ in one], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_behind_a_checkpoint(tmp_path: Path, store, number: int) -> None:
    settings = tiny_settings()
    whole = tiny_trainer(tmp_path / "whole", store, settings)
    whole.run()
    stopped = tiny_trainer(tmp_path / "stopped", store, settings)
    at_step(stopped, 4, lambda: os.kill(os.getpid(), number))
    with pytest.raises(InterruptedRunError, match="Stopped after step 5"):
        stopped.run()
    assert newest_checkpoint(stopped.run_directory.checkpoints).step == 5
    again = tiny_trainer(tmp_path / "stopped", store, settings)
    again.run()
    assert_equal_weights(weights_of(again.objective), weights_of(whole.objective))
    assert steps_logged(again) == list(range(1, 13))


@pytest.mark.parametrize("stops", [[1], [7], [2, 3, 8]], ids=str)
def test_f21_an_interrupted_log_has_the_lines_of_one_that_was_not(tmp_path: Path, store, stops: list[int]) -> None:
    settings = tiny_settings(mechanics__log_every=5, mechanics__checkpoint_every=6)
    whole = tiny_trainer(tmp_path / "whole", store, settings)
    whole.run()
    for step in stops:
        stopped = tiny_trainer(tmp_path / "stopped", store, settings)
        at_step(stopped, step, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(InterruptedRunError):
            stopped.run()
    again = tiny_trainer(tmp_path / "stopped", store, settings)
    again.run()
    one, other = (
        [{name: value for name, value in entry.items() if name not in TIMES} for entry in trainer.run_directory.read_metrics()]
        for trainer in (whole, again)
    )
    assert [entry["step"] for entry in one] == [5, 6, 10, 12]
    assert one == other


TIMES = ("images_per_second", "waiting", "seconds")


def test_a_signal_between_looking_and_stopping_still_gets_its_checkpoint(tmp_path: Path, store) -> None:
    class Late:
        """Is requested from the second time that anybody looks in a step on."""

        measured = 0

        def __enter__(self) -> Late:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        @property
        def requested(self) -> bool:
            self.measured += 1
            return self.measured > 1

    trainer = tiny_trainer(tmp_path, store, tiny_settings(mechanics__checkpoint_every=100), stop=Late)
    with pytest.raises(InterruptedRunError) as caught:
        trainer.run()
    assert f"Stopped after step {newest_checkpoint(trainer.run_directory.checkpoints).step} of" in str(caught.value)


def test_a_signal_in_the_last_step_changes_nothing(tmp_path: Path, store) -> None:
    trainer = tiny_trainer(tmp_path, store, tiny_settings())
    at_step(trainer, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run()
    assert newest_checkpoint(trainer.run_directory.checkpoints).step == 12


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, store) -> None:
    settings = tiny_settings()
    first = tiny_trainer(tmp_path, store, settings)
    first.run()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "metrics.jsonl"}
    metrics = first.run_directory.metrics.read_text()
    again = tiny_trainer(tmp_path, store, settings)
    again.run()
    assert files == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "metrics.jsonl"
    }
    assert again.run_directory.metrics.read_text() == metrics
    assert_equal_weights(weights_of(again.objective), weights_of(first.objective))


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path, store) -> None:
    tiny_trainer(tmp_path, store, tiny_settings()).run()
    with pytest.raises(CheckpointError, match=r"step-00000012 was trained with other settings"):
        tiny_trainer(tmp_path, store, tiny_settings(training__lr=1e-4))


def test_workers_change_nothing(tmp_path: Path, store) -> None:
    trainers = [tiny_trainer(tmp_path / str(workers), store, tiny_settings(mechanics__workers=workers)) for workers in (0, 2)]
    for trainer in trainers:
        trainer.run()
    assert_equal_weights(*(weights_of(trainer.objective) for trainer in trainers))


def keys_by_step(trainer: PreTraining) -> list[list[str]]:
    return [batch.keys for batch in trainer.batches()]


def test_the_order_is_a_function_of_the_step_whatever_the_workers(tmp_path: Path, store) -> None:
    settings = tiny_settings(mechanics__log_every=100)
    expected = keys_by_step(tiny_trainer(tmp_path, store, settings))
    batches = [[tiny_key(index) for index in batch] for batch in step_batches(IMAGES, BATCH, 3, 0, 12)]
    assert expected == batches
    later = tiny_trainer(tmp_path, store, tiny_settings(mechanics__log_every=100, mechanics__workers=2))
    later.first_step = 7
    assert keys_by_step(later) == expected[7:]


def tiny_key(index: int) -> str:
    from mapet.data.source import sample_key

    return sample_key(tiny_source().read(index))


def plant_nan(trainer: PreTraining) -> None:
    trainer.objective.head.bias.data[0] = torch.nan


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(tmp_path: Path, store, micro_batch: int | None) -> None:
    trainer = tiny_trainer(tmp_path, store, tiny_settings(mechanics__micro_batch=micro_batch, mechanics__log_every=4))
    before = {}

    def plant() -> None:
        plant_nan(trainer)
        before.update(weights_of(trainer.objective))

    at_step(trainer, 7, plant)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.run()
    keys = [tiny_key(index) for index in list(step_batches(IMAGES, BATCH, 3, 0, 12))[7]]
    assert "is not finite at step 7" in str(caught.value)
    assert all(key in str(caught.value) for key in keys[:4])
    assert json.loads((tmp_path / "nonfinite.json").read_text()) == {"step": 7, "sample_keys": keys}
    for name, value in trainer.objective.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    checkpoint = newest_checkpoint(trainer.run_directory.checkpoints)
    assert checkpoint.step == 6
    assert max(steps_logged(trainer)) == 6
    again = tiny_trainer(tmp_path, store, tiny_settings())
    again.run()
    whole = tiny_trainer(tmp_path / "whole", store, tiny_settings())
    whole.run()
    if micro_batch is None:
        assert_equal_weights(weights_of(again.objective), weights_of(whole.objective))


def test_no_checkpoint_is_written_behind_a_step_that_was_not_taken(tmp_path: Path, store) -> None:
    """On a GPU, `halted_at` is looked at now and then only; whenever a checkpoint is due, it must be."""
    trainer = tiny_trainer(tmp_path, store, tiny_settings(mechanics__log_every=10, mechanics__checkpoint_every=4))
    trainer.device = SimpleNamespace(type="asynchronous")
    trainer.batches = lambda load=trainer.batches: load_on_cpu(trainer, load)
    at_step(trainer, 5, lambda: plant_nan(trainer))
    with pytest.raises(NonFiniteLossError, match="step 5"):
        trainer.run()
    assert newest_checkpoint(trainer.run_directory.checkpoints).step == 4


def load_on_cpu(trainer: PreTraining, load):
    trainer.device, device = torch.device("cpu"), trainer.device
    batches = list(load())
    trainer.device = device
    return iter(batches)


class Vanishing(TinyImages):
    """One image that can no longer be read."""

    def read(self, index: int) -> bytes:
        if index == 3:
            raise UnreadableImageError("the file is gone")
        return super().read(index)


@pytest.mark.parametrize("limit", [0, 1])
def test_images_that_vanish_are_counted_against_the_limit(tmp_path: Path, store, limit: int) -> None:
    settings = tiny_settings(training__steps=5, mechanics__max_unreadable=limit)
    trainer = tiny_trainer(tmp_path, store, settings)
    trainer.source = Vanishing("tiny", IMAGES, seed=0)
    if limit:
        trainer.run()
        return
    with pytest.raises(DataError, match=r"tiny image 3: the file is gone(.|\n)*--max-unreadable"):
        trainer.run()


def test_a_batch_of_which_nothing_is_left_is_survived(tmp_path: Path, store) -> None:
    settings = tiny_settings(training__steps=8, training__batch_size=1, mechanics__max_unreadable=1)
    source = Vanishing("tiny", IMAGES, seed=0)
    images, tokens = subset(source, range(2, 6)), StoredTokens(store)
    trainer = PreTraining(tiny_objective(settings), images, tokens, settings, RunDirectory(tmp_path), torch.device("cpu"))
    trainer.run()
    assert steps_logged(trainer) == list(range(1, 9))
