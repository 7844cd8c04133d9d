from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from mapet.data.source import sample_keys, subset
from mapet.engine.callbacks import LogPoint, Monitor
from mapet.errors import DataError, InterruptedRunError, SettingsError, UnreadableImageError
from mapet.evaluation import online
from mapet.evaluation.online import OnlineProbe, probe_parts
from mapet.evaluation.presets import protocol_of
from mapet.pretraining.pretrain import pretrain
from mapet.pretraining.training import PreTraining
from mapet.token_store.read import TokenStore
from tests.tiny import (
    LOCATION,
    TinyImages,
    assert_equal_weights,
    tiny_settings,
    tiny_store,
    tiny_trainer,
    weights_of,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return tiny_store(tmp_path_factory.mktemp("tiny") / "store")


def probed(path: Path, store: TokenStore, *, monitors: bool = True, **changes) -> PreTraining:
    settings = tiny_settings(**({"mechanics__probe_every": 1.0, "training__drop_path": 0.2} | changes))
    watching = (
        [OnlineProbe(settings, [protocol_of("knn"), protocol_of("linear", {"min_steps": 5, "epochs": 5})])] if monitors else []
    )
    return tiny_trainer(path, store, settings, monitors=watching)


def figures(trainer: PreTraining) -> dict[int, list[float]]:
    entries = trainer.run_directory.read_metrics()
    return {entry["step"]: [entry["online/knn"], entry["online/linear"]] for entry in entries if "online/knn" in entry}


def test_a_probe_after_every_epoch_and_at_the_end_changes_no_bit_of_the_training(tmp_path: Path, store, capsys) -> None:
    with_probe, without = probed(tmp_path / "with", store), probed(tmp_path / "without", store, monitors=False)
    with_probe.run()
    without.run()
    assert_equal_weights(weights_of(with_probe.objective), weights_of(without.objective))
    assert [*figures(with_probe)] == [5, 10, 12]
    assert figures(without) == {}
    assert all(0 <= figure <= 1 for found in figures(with_probe).values() for figure in found)
    assert all(entry["online/seconds"] > 0 for entry in with_probe.run_directory.read_metrics() if "online/knn" in entry)
    said = capsys.readouterr().err
    assert said.count("Probe at step") == 3
    assert "held-out training images" in said


def test_a_continued_run_probes_at_the_same_steps_with_the_same_figures(tmp_path: Path, store) -> None:
    whole = probed(tmp_path / "run", store, mechanics__checkpoint_every=6, mechanics__log_every=2)
    whole.run()
    before = figures(whole)
    assert [*before] == [6, 10, 12]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    again = probed(tmp_path / "run", store, mechanics__checkpoint_every=6, mechanics__log_every=2)
    assert again.first_step == 6
    again.run()
    assert figures(again) == before


def test_f21_a_probe_that_was_due_when_a_run_stopped_is_not_forgotten(tmp_path: Path, store) -> None:
    class Stopping(Monitor):
        def before_step(self, step, token_ids):
            if step == 4:
                signal.raise_signal(signal.SIGTERM)

    settings = {"mechanics__checkpoint_every": 12, "mechanics__log_every": 2}
    whole, stopped = probed(tmp_path / "whole", store, **settings), probed(tmp_path / "parts", store, **settings)
    whole.run()
    stopped.monitors.append(Stopping())
    with pytest.raises(InterruptedRunError, match="after step 5"):
        stopped.run()
    again = probed(tmp_path / "parts", store, **settings)
    again.run()
    assert figures(again) == figures(whole)
    assert [*figures(whole)] == [6, 10, 12]


def test_the_backbone_is_judged_as_it_stands(tmp_path: Path, store) -> None:
    """Dark and bright images: features that tell them apart give 100 %, features that are all the same do not."""
    trainer = probed(tmp_path, store)
    [probe] = trainer.monitors
    probe.begin(trainer.context())
    point = LogPoint(12, 1e-3, {})
    told = probe.observe(point).scalars
    for parameter in trainer.objective.backbone.parameters():
        parameter.data.zero_()
    probe.begin(trainer.context())
    blind = probe.observe(point).scalars
    assert told["online/linear"] == 1
    assert blind["online/linear"] in (np.mean(probe.validation.labels == 0), np.mean(probe.validation.labels == 1))
    assert all(parameter.requires_grad for parameter in trainer.objective.backbone.parameters())


def test_the_parts_are_chosen_by_content() -> None:
    source = TinyImages("tiny", 200, seed=5)
    train, validation = probe_parts(source)
    keys = {"train": sample_keys(train), "held out": sample_keys(validation)}
    assert not {*keys["train"]} & {*keys["held out"]}
    assert len(train) + len(validation) == 200
    assert 15 < len(validation) < 65
    order = np.random.default_rng(0).permutation(200)
    other_train, other_held_out = probe_parts(subset(source, [*order, *order[:50]]))  # in another order, some images twice
    assert {*sample_keys(other_train)} == {*keys["train"]}
    assert {*sample_keys(other_held_out)} == {*keys["held out"]}


def test_of_many_images_some_are_taken_the_same_whatever_their_order(monkeypatch) -> None:
    monkeypatch.setattr(online, "PROBED_IMAGES", 60)
    source = TinyImages("tiny", 200, seed=5)
    parts = probe_parts(source)
    assert sum(map(len, parts)) == 60
    others = probe_parts(subset(source, range(199, -1, -1)))
    for one, other in zip(parts, others, strict=True):
        assert {*sample_keys(one)} == {*sample_keys(other)}


def test_files_that_cannot_be_opened_are_passed_over() -> None:
    source = TinyImages("tiny", 60, seed=5)
    read = source.read

    def lost(index: int) -> bytes:
        if index == 3:
            raise UnreadableImageError("the file cannot be opened")
        return read(index)

    source.read = lost  # type: ignore[method-assign]
    parts = probe_parts(source)
    assert sum(map(len, parts)) == 59
    assert "" not in {*sample_keys(parts[0]), *sample_keys(parts[1])}


class Unlabelled(TinyImages):
    def __init__(self, location: str, split: str) -> None:
        super().__init__(location, 40, seed=0)
        self.labels = None


def test_images_without_labels_are_refused_before_any_work(tmp_path: Path) -> None:
    settings = tiny_settings(mechanics__probe_every=2)
    with pytest.raises(DataError, match=r"has no labels\.(.|\n)*Or leave out --probe-every"):
        pretrain(f"{__name__}:Unlabelled", settings, tmp_path / "run", monitors=[OnlineProbe(settings)])
    assert not (tmp_path / "run").exists()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="has 2 images, too few"):
        probe_parts(TinyImages("tiny", 2, seed=1))


def test_a_setting_that_nobody_heeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"probe_every is 2, but no monitor(.|\n)*OnlineProbe\(settings\)"):
        pretrain(LOCATION, tiny_settings(mechanics__probe_every=2), tmp_path / "run")
