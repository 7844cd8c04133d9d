from __future__ import annotations

import importlib

import pytest
import torch

from mapet.compat import timm
from mapet.config.settings import TrainingSettings
from mapet.engine.optimizer import decay_groups, layer_groups
from mapet.engine.schedule import cosine
from mapet.pretraining.step import make_optimizer
from tests.tiny import tiny_objective, tiny_settings


def learning_rate(step: int, total: int, warmup: int, settings: TrainingSettings) -> float:
    return cosine(step, total, warmup, lr=settings.lr, min_lr=settings.min_lr, warmup_lr=settings.warmup_lr)


@pytest.mark.parametrize(("total", "warmup"), [(50, 0), (50, 7), (3, 1), (1, 0)])
def test_the_rate_is_that_of_timm_at_every_step(total: int, warmup: int) -> None:
    settings = tiny_settings(training__lr=2e-3, training__min_lr=1e-5, training__warmup_lr=1e-6).training
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedules = importlib.import_module(f"{timm.__name__}.scheduler")
    scheduler = schedules.CosineLRScheduler(
        optimizer,
        t_initial=total - warmup + (total == 1),  # timm warns of a cosine of one step
        lr_min=settings.min_lr,
        warmup_t=warmup,
        warmup_lr_init=settings.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(total):
        scheduler.step_update(step)
        assert learning_rate(step, total, warmup, settings) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_the_rate_begins_peaks_and_ends_as_said() -> None:
    settings = tiny_settings().training
    rates = [learning_rate(step, 100, 10, settings) for step in range(101)]
    assert rates[0] == settings.warmup_lr
    assert rates[10] == max(rates) == settings.lr
    assert rates[100] == pytest.approx(settings.min_lr)
    assert sorted(rates[:11]) == rates[:11]
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_a_warm_up_longer_than_the_run_divides_nothing_by_zero() -> None:
    settings = tiny_settings().training
    assert learning_rate(5, 5, 5, settings) == settings.lr
    assert learning_rate(4, 5, 10, settings) < settings.lr


@pytest.mark.parametrize("name", ["mim", "pim", "mapet"])
def test_decay_follows_the_paper(name: str) -> None:
    settings = tiny_settings(objective__name=name, training__weight_decay=0.07)
    objective = tiny_objective(settings)
    optimizer = make_optimizer(objective, settings.training)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {parameter_name: decay[id(p)] for parameter_name, p in objective.named_parameters()}
    decayed = {parameter_name for parameter_name, value in names.items() if value == 0.07}
    assert set(names.values()) == {0.0, 0.07}
    assert "mask_token" in decayed
    assert "head.weight" in decayed
    assert "backbone.patch_embed.proj.weight" in decayed
    assert {"backbone.pos_embed", "backbone.cls_token"}.isdisjoint(decayed)
    for parameter_name, parameter in objective.named_parameters():
        special = parameter_name in ("mask_token", "backbone.pos_embed", "backbone.cls_token")
        assert special or (parameter_name in decayed) == (parameter.ndim > 1), parameter_name


def test_registers_are_not_decayed_anywhere() -> None:
    """R20: pre-training, fine-tuning, and all that builds on them, go by one list."""
    backbone = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=3, reg_tokens=2
    )
    expected = {"pos_embed", "cls_token", "reg_token"} | {name for name, value in backbone.named_parameters() if value.ndim < 2}
    for groups in (decay_groups(backbone, 0.05), layer_groups(backbone, 1, 0.75, 0.05)):
        decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
        assert {name for name, value in backbone.named_parameters() if decay[id(value)] == 0.0} == expected


def test_settings_reach_the_optimizer() -> None:
    settings = tiny_settings(training__betas=[0.8, 0.9], training__eps=1e-6).training
    optimizer = make_optimizer(tiny_objective(tiny_settings()), settings)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.9), 1e-6, True)
