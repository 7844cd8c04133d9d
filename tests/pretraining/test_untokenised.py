"""Objectives that predict something else than tokens: no tokenizer is made, the run's own scale is used, a teacher lags a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mapet.data.batch import Batch
from mapet.errors import SettingsError
from mapet.objectives.cae import CAE
from mapet.pretraining import training as trainer_module
from mapet.pretraining.pretrain import backbone_spec, build_objective, pretrain
from mapet.pretraining.step import TrainingStep
from tests.tiny import LOCATION, assert_equal_weights, tiny_settings, tiny_tokenizer, weights_of

PIXELS = {"objective": {"name": "zoomed_in", "options": {"width": 24, "depth": 1, "num_heads": 2}}}


def start(out: Path, steps: int = 4, **inputs):
    return pretrain(LOCATION, tiny_settings(training__steps=steps, **PIXELS), out, **inputs)


def test_no_tokens_are_made(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    assert run.backbone.is_dir()
    assert not run.tokenizer.exists()
    assert not run.tokens.exists()
    assert "token_accuracy" not in run.read_metrics()[-1]


def test_tokens_that_nobody_would_use_are_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save(tmp_path / "tokenizer")
    with pytest.raises(SettingsError, match="'zoomed_in' predicts no visual tokens"):
        start(tmp_path / "run", tokenizer=tmp_path / "tokenizer")


def test_images_have_the_size_that_the_objective_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(trainer_module.TrainingStep):
        def __call__(self, images, token_ids, step, learning_rate):
            seen.append((*images.shape[1:], token_ids is None))
            return super().__call__(images, token_ids, step, learning_rate)

    monkeypatch.setattr(trainer_module, "TrainingStep", Watched)
    start(tmp_path / "run", steps=2)
    assert seen == [(3, 20, 20, True)] * 2  # 16 pixels are seen, and 2 more on every side


def test_it_is_continued_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start(tmp_path / "whole")
    save = trainer_module.PreTraining._save

    def die(self, step, *window):
        save(self, step, *window)
        if step < 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module.PreTraining, "_save", die)
    settings = tiny_settings(training__steps=4, mechanics__checkpoint_every=2, **PIXELS)
    with pytest.raises(KeyboardInterrupt):
        pretrain(LOCATION, settings, tmp_path / "parts")
    monkeypatch.setattr(trainer_module.PreTraining, "_save", save)
    parts = pretrain(LOCATION, settings, tmp_path / "parts")
    assert_equal_weights(*(load_file(run.backbone / "weights.safetensors") for run in (whole, parts)))


def test_pixels_are_those_of_the_run(tmp_path: Path) -> None:
    settings = tiny_settings(training__mean=(0.1, 0.2, 0.3), training__std=(0.5, 0.5, 0.4), **PIXELS)
    objective = build_objective(settings, backbone_spec(settings).build())
    assert objective.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert objective.std.flatten().tolist() == pytest.approx([0.5, 0.5, 0.4])


def test_a_lagging_teacher_is_one_step_behind(tmp_path: Path) -> None:
    """Before the optimizer moves the encoder, the teacher becomes what the encoder is."""
    options = {"teacher": "lagging", "regressor_depth": 1, "decoder_depth": 1}
    settings = tiny_settings(objective={"name": "cae", "options": options}, mechanics={"micro_batch": 2, "device": "cpu"})
    objective = build_objective(settings, backbone_spec(settings).build())
    assert isinstance(objective, CAE)
    step = TrainingStep(objective, settings, torch.device("cpu"))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    ids = torch.randint(0, settings.tokenizer.vocab_size, (4, 16))
    for number in range(2):
        before = weights_of(objective.backbone)
        step(images, ids, number, 1e-2)
        assert all(torch.equal(value, before[name]) for name, value in weights_of(objective.teacher).items())
        assert any(not torch.equal(value, before[name]) for name, value in weights_of(objective.backbone).items())
    assert objective(Batch(images.float() / 255, ids), objective.corrupt(Batch(images), torch.Generator())).loss_sum.isfinite()
