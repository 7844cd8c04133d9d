from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from mapet.checkpoints.address import LoadedBackbone
from mapet.checkpoints.backbone_folder import read_backbone
from mapet.data.augmentation import TrainingView
from mapet.data.loader import ImageBatches, ViewRenderer
from mapet.data.order import BatchItem
from mapet.engine.checkpoint import newest_checkpoint
from mapet.engine.loop import LoopSettings
from mapet.errors import (
    CheckpointError,
    InterruptedRunError,
    ModelError,
    NonFiniteLossError,
    SettingsError,
)
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.finetuning import training
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.evaluate import evaluate_models
from mapet.evaluation.finetuning.training import FineTuning
from mapet.evaluation.presets import protocol_of
from mapet.evaluation.protocol import Metrics
from mapet.models.positions import with_own_tables
from tests.evaluation.finetuning.tiny import CPU, EVERYTHING, OPTIONS, quick, tiny_frozen, tiny_spec
from tests.tiny import LOCATION, assert_equal_weights, at_step, weights_of


def told(tuning: FineTuning) -> list[tuple[Any, ...]]:
    """What metrics.jsonl says, without times."""
    entries = tuning.run_directory.read_metrics()
    return [
        (entry["step"], entry.get("loss"), entry.get("lr"), entry.get("test_top1"), entry.get("test_ema_top1")) for entry in entries
    ]


def test_it_learns_and_keeps_a_model_that_gives_the_same_figures(tmp_path: Path) -> None:
    spec = tiny_spec()
    target = LoadedBackbone(spec.build(), spec, "tiny")
    protocol = quick(epochs=6, ema=0.5)
    (result,) = evaluate(target, LOCATION, [protocol], device=CPU, folder=tmp_path)
    assert result.random_figures is None, "expensive: only when asked for"
    assert result.value == result.figures["top1"] == result.details["top1_by_epoch"][-1][1] > 0.9
    assert result.details["steps"] == 30
    assert result.details["weights"] == {
        "kept": 32,
        "dropped": ["norm.weight", "norm.bias"],
        "new": ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"],
    }
    folder = tmp_path / protocol.stem(LOCATION)
    assert json.loads((folder / "classes.json").read_text()) == ["dark", "bright"]
    assert newest_checkpoint(folder / "checkpoints").step == 30
    model, ema = read_backbone(folder / "model"), read_backbone(folder / "ema_model")
    assert model[1].options["num_classes"] == model[0].num_classes == 2
    assert not torch.equal(model[0].head.weight, ema[0].head.weight)
    figures = evaluate_models({"": model[0], "ema_": ema[0]}, model[1], tiny_frozen(), protocol).values
    assert figures == result.figures
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_without_a_folder_nothing_is_kept_and_the_figures_are_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    kept = quick().evaluate(tiny_frozen(tmp_path / "kept"))
    assert quick().evaluate(tiny_frozen()) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("how", ["signal", "killed"])
def test_a_continued_fine_tuning_is_the_uninterrupted_one(tmp_path: Path, how: str) -> None:
    settings = quick(**EVERYTHING)

    def tuning(name: str) -> FineTuning:
        """Writes a checkpoint after every third step."""
        when, clock = LoopSettings(checkpoint_seconds=3), count().__next__
        return FineTuning(tiny_frozen(tmp_path / name), settings, tmp_path / name, when=when, clock=clock)

    whole, stopped = tuning("whole"), tuning("stopped")
    figures = whole.train_and_evaluate()
    if how == "signal":
        at_step(stopped, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(InterruptedRunError, match=r"Stopped after step 7 of the fine-tuning\. The same command continues"):
            stopped.train_and_evaluate()
    else:
        at_step(stopped, 8, lambda: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            stopped.train_and_evaluate()
    again = tuning("stopped")
    assert again.first_step == (7 if how == "signal" else 6)
    assert again.train_and_evaluate() == figures
    assert_equal_weights(weights_of(again.state), weights_of(whole.state))
    entries = told(whole)
    assert [entry[0] for entry in entries] == [5, 5, 10, 10]
    assert told(again) == entries  # F21
    finished = tuning("stopped")
    finished.batches = None
    assert finished.train_and_evaluate() == figures, "without another step"


def test_workers_and_looks_change_nothing(tmp_path: Path) -> None:
    one, other = (
        trained(tmp_path / str(workers), quick(**EVERYTHING, evaluate_every=every), workers)
        for workers, every in ((0, 1), (1, 0.4))
    )
    assert_equal_weights(one, other)


def trained(folder: Path, settings: Any, workers: int) -> dict[str, torch.Tensor]:
    tuning = FineTuning(tiny_frozen(workers=workers), settings, folder)
    tuning.train_and_evaluate()
    return weights_of(tuning.state)


def test_the_average_of_the_weights_follows_every_step(tmp_path: Path) -> None:
    tuning = FineTuning(tiny_frozen(), quick(ema=0.8), tmp_path)
    expected, take = weights_of(tuning.model), tuning.training_step

    def taking(*arguments: Any) -> Any:
        sums = take(*arguments)
        for name, value in tuning.model.state_dict().items():
            expected[name] = 0.8 * expected[name] + 0.2 * value
        return sums

    tuning.training_step = taking
    tuning.train_and_evaluate()
    torch.testing.assert_close(dict(tuning.ema.module.state_dict()), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(expected["head.weight"], tuning.model.head.weight)


def test_every_epoch_draws_anew_and_every_seed_too() -> None:
    source = tiny_frozen().train

    def pixels(seed: int, epoch: int) -> torch.Tensor:
        return ImageBatches(source, ViewRenderer(TrainingView(16), seed))[BatchItem([4, 7], (epoch,))].images

    assert torch.equal(pixels(0, 1), pixels(0, 1))
    assert not torch.equal(pixels(0, 1), pixels(0, 2))
    assert not torch.equal(pixels(0, 1), pixels(1, 1))


def test_the_figure_is_that_of_the_last_look_not_of_the_best(tmp_path: Path, monkeypatch) -> None:
    evaluations = iter([0.9, 0.4, 0.6])
    monkeypatch.setattr(training, "evaluate_models", lambda *_: Metrics({"top1": next(evaluations)}))
    found = quick(epochs=3).evaluate(tiny_frozen(tmp_path))
    assert found.values == {"top1": 0.6}
    assert found.details["top1_by_epoch"] == [[1.0, 0.9], [2.0, 0.4], [3.0, 0.6]]


def test_the_rate_rises_and_falls_step_by_step(tmp_path: Path) -> None:
    settings = quick(epochs=4, warmup_epochs=1, lr=1e-3, min_lr=1e-5, warmup_lr=1e-6)
    tuning = FineTuning(tiny_frozen(tmp_path), settings, tmp_path, when=LoopSettings(log_every=1))
    tuning.train_and_evaluate()
    rates = [entry[2] for entry in told(tuning) if entry[2] is not None]
    warmup = [1e-6 + (1e-3 - 1e-6) * step / 5 for step in range(5)]
    cosine = [1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * step / 15)) for step in range(15)]
    assert rates == pytest.approx(warmup + cosine, rel=1e-9)
    assert {group["lr_scale"] for group in tuning.step.optimizer.param_groups} == {0.75**3, 0.75**2, 0.75, 1.0}
    for group in tuning.step.optimizer.param_groups:
        assert group["lr"] == pytest.approx(rates[-1] * group["lr_scale"])


def test_few_images_are_passed_over_more_often_with_a_longer_warmup(tmp_path: Path) -> None:
    tuning = FineTuning(tiny_frozen(), quick(min_steps=40, evaluate_every=1), tmp_path)
    assert (tuning.total_steps, tuning.warmup_steps, tuning.evaluate_every) == (40, 10, 20)
    assert FineTuning(tiny_frozen(), quick(), tmp_path).total_steps == 10


def test_fewer_images_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    tuning = FineTuning(tiny_frozen(), quick(batch_size=64, epochs=2), tmp_path)
    tuning.train_and_evaluate()
    assert tuning.total_steps == 2
    assert quick(batch_size=64, epochs=2).note(40) == "40 images are fewer than a batch of 64, and are one batch."
    assert quick(batch_size=40, epochs=2).note(40) == ""
    longer = quick(batch_size=8, epochs=2, min_steps=40).note(40)
    assert longer == "8 epochs in place of 2, to take at least 40 steps (min_steps)."


def test_from_scratch_nothing_of_the_backbone_is_used(tmp_path: Path, capsys) -> None:
    spec = tiny_spec()
    trained = tiny_frozen(tmp_path / "trained", spec=spec)
    with torch.no_grad():
        for parameter in trained.backbone.parameters():
            parameter.add_(1.0)
    settings = quick(scratch=True)
    frozen_models = trained, tiny_frozen(tmp_path / "random", spec=spec)
    first, second = (FineTuning(frozen, settings, tmp_path / str(number)) for number, frozen in enumerate(frozen_models))
    other = FineTuning(trained, quick(), tmp_path / "other")
    for tuning in (first, second, other):
        tuning.train_and_evaluate()
    assert_equal_weights(weights_of(first.model), weights_of(second.model))
    assert not torch.equal(first.model.get_parameter("pos_embed"), other.model.get_parameter("pos_embed"))
    assert capsys.readouterr().err.count("Weights: all new, at random initialisation") == 2
    assert quick().hash != settings.hash
    assert "scratch" not in quick().describe()
    assert protocol_of("finetune:scratch").describe()["scratch"] is True


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    quick().evaluate(tiny_frozen(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"another backbone, on other images or labels, or with other settings\. Give another --out"
    ):
        quick().evaluate(tiny_frozen(tmp_path, spec=replace(tiny_spec(), seed=6)))


def test_a_loss_that_is_not_finite_stops_before_anything_moves(tmp_path: Path) -> None:
    tuning = FineTuning(tiny_frozen(tmp_path), quick(), tmp_path)
    with torch.no_grad():
        tuning.model.get_parameter("pos_embed")[0, 3] = math.nan
    before = weights_of(tuning.model.head)
    with pytest.raises(NonFiniteLossError, match="not finite at step 0 of the fine-tuning"):
        tuning.train_and_evaluate()
    assert_equal_weights(before, weights_of(tuning.model.head))
    assert not (tmp_path / "model").exists()
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_the_subject_stays_as_it_is(tmp_path: Path) -> None:
    frozen = tiny_frozen(tmp_path)
    before = weights_of(frozen.backbone)
    quick().evaluate(frozen)
    assert_equal_weights(before, weights_of(frozen.backbone))
    assert not any(parameter.requires_grad for parameter in frozen.backbone.parameters())


def test_positions_are_resized_to_other_images(tmp_path: Path) -> None:
    from mapet.compat import timm

    frozen = tiny_frozen(tmp_path)
    settings = quick(image_size=24)
    model, spec, found = build_classifier(frozen, settings)
    expected = timm.layers.resample_abs_pos_embed(frozen.backbone.pos_embed, [6, 6], [4, 4], num_prefix_tokens=1, antialias=False)
    assert torch.equal(model.pos_embed, expected)
    assert spec.image_size == 24
    assert "pos_embed" in found.kept
    settings.evaluate(frozen)
    saved, spec = read_backbone(tmp_path / "model")
    assert saved.pos_embed.shape == expected.shape
    assert spec.image_size == spec.options["img_size"] == 24
    assert frozen.backbone.pos_embed.shape[1] == 17
    with pytest.raises(ModelError, match="image_size is 25; allowed: a multiple of the patch size 4"):
        build_classifier(frozen, quick(image_size=25))


def test_the_class_token_keeps_its_norm(tmp_path: Path) -> None:
    frozen = tiny_frozen()
    with torch.no_grad():
        frozen.backbone.norm.weight.fill_(1.5)
    model, _, found = build_classifier(frozen, quick(pool="cls"))
    assert found.dropped == []
    assert found.new == ["head.weight", "head.bias"]
    assert model.norm.weight[0].item() == 1.5
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.head(frozen.backbone.forward_features(images)[:, 0])
        torch.testing.assert_close(model.eval()(images), expected)
    headless = tiny_frozen(spec=tiny_spec(class_token=False, global_pool="avg"))
    with pytest.raises(SettingsError, match=r"no class token, so that pooling 'cls' is impossible\. Use 'mean'"):
        build_classifier(headless, quick(pool="cls"))
    assert build_classifier(headless, quick())[2].dropped == ["fc_norm.weight", "fc_norm.bias"]


def test_a_head_that_came_along_is_replaced() -> None:
    frozen = tiny_frozen(spec=tiny_spec(num_classes=7))
    model, spec, found = build_classifier(frozen, quick())
    assert found.dropped == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert model.head.out_features == spec.options["num_classes"] == 2


def test_a_beit_with_relative_positions_is_fine_tuned_too(tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "num_classes"} | {
        "num_classes": 0,
        "use_rel_pos_bias": True,
    }
    spec = replace(tiny_spec(), name="beit_base_patch16_224", options=options | {"use_abs_pos_emb": False})
    frozen = tiny_frozen(tmp_path, spec=spec)
    model, _, found = build_classifier(frozen, quick(image_size=24))
    assert found.new == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    table = "blocks.1.attn.relative_position_bias_table"
    assert table in found.kept
    assert model.get_parameter(table).shape == (11 * 11 + 3, 2)
    metrics = quick(layer_decay=0.5).evaluate(frozen)
    saved, spec = read_backbone(tmp_path / "model")
    assert evaluate_models({"": saved}, spec, frozen, quick()).values == metrics.values
    class_token = build_classifier(frozen, quick(pool="cls"))[2]
    assert class_token.new == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_blocks_that_shared_a_table_of_positions_get_one_each(tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "num_classes"}
    of_beit = {"num_classes": 0, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_abs_pos_emb": False}
    frozen = tiny_frozen(tmp_path, spec=replace(tiny_spec(), name="beit_base_patch16_224", options=options | of_beit))
    shared = frozen.backbone.state_dict()["rel_pos_bias.relative_position_bias_table"]
    torch.nn.init.normal_(shared)
    backbone, _ = with_own_tables(frozen.backbone, frozen.spec)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(backbone.forward_features(images), frozen.backbone.forward_features(images))
    model, _, found = build_classifier(frozen, quick())
    tables = [model.get_parameter(f"blocks.{number}.attn.relative_position_bias_table") for number in range(2)]
    assert all(torch.equal(table, shared) for table in tables)
    assert not [name for name in found.dropped if "relative" in name]
    quick(lr=1e-2).evaluate(frozen)
    learned, _ = read_backbone(tmp_path / "model")
    first, second = (learned.get_parameter(f"blocks.{number}.attn.relative_position_bias_table") for number in range(2))
    assert not torch.equal(first, second)
