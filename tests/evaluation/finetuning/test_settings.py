from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mapet.errors import SettingsError
from mapet.evaluation.finetuning.protocol import FineTune
from mapet.evaluation.finetuning.settings import MECHANICS
from mapet.evaluation.presets import preset_text, presets_of, protocol_of, setting_names

OTHER = {
    "layer_decay": 0.5,
    "clip_norm": 1.0,
    "rand_augment": "rand-m5",
    "crop_scale": (0.5, 1.0),
    "ema": 0.99,
    "image_size": 96,
    "micro_batch": 4,
    "interpolation": "random",
    "precision": "bf16",
    "pool": "cls",
    "betas": (0.9, 0.95),
    "flip": False,
}


def changed(name: str) -> FineTune:
    value = getattr(FineTune(), name)
    return FineTune(
        **{name: OTHER[name] if name in OTHER else value + 0.25 if isinstance(value, float) else value + 1} | roomy(name)
    )


def roomy(name: str) -> dict[str, Any]:
    """Lets a value grow without a warm-up beyond the end, or a crop beyond the image."""
    return {"warmup_epochs": {"warmup_epochs": 2}, "crop_fraction": {"crop_fraction": 0.5}, "mix_prob": {"mix_prob": 0.5}}.get(
        name, {}
    )


@pytest.mark.parametrize("name", setting_names(FineTune))
def test_the_hash_changes_with_every_setting_but_the_mechanics(name: str) -> None:
    assert getattr(changed(name), name) != getattr(FineTune(), name)
    plain = FineTune(drop_path=0.0)  # with drop path, parts of a batch draw otherwise
    assert (dataclasses.replace(plain, **{name: getattr(changed(name), name)}).hash != plain.hash) == (name not in MECHANICS)
    assert (name in FineTune(scratch=True).describe()) == (name not in MECHANICS)


def test_the_presets_of_the_paper_say_what_is_printed() -> None:
    printed = {"tiny": (300, 2.5e-4, None), "small": (200, 5e-3, 0.65), "base": (100, 5e-4, 0.65)}
    for name, (epochs, lr, layer_decay) in printed.items():
        preset = protocol_of(f"finetune:{name}")
        assert (preset.epochs, preset.lr, preset.layer_decay) == (epochs, lr, layer_decay)
        assert (preset.batch_size, preset.warmup_epochs, preset.warmup_lr, preset.min_lr) == (1024, 20, 1e-6, 1e-6)
        assert (preset.weight_decay, preset.betas, preset.smoothing, preset.drop_path) == (0.05, (0.9, 0.999), 0.1, 0.1)
        assert (preset.rand_augment, preset.mixup, preset.cutmix, preset.erasing) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.25)
        assert (preset.pool, preset.crop_fraction, preset.head_init_scale) == ("mean", 0.9, 1.0)
    text = preset_text("finetune")
    assert "lr 5e-3 is printed in the paper" in text
    assert "suspicion" in text


def test_the_sane_variant_differs_in_the_rate_alone() -> None:
    small, sane = (protocol_of(f"finetune:{name}") for name in ("small", "small_sane"))
    assert sane.lr == 5e-4
    assert dataclasses.replace(sane, lr=small.lr) == small
    assert sane.hash != small.hash


def test_published_neighbours_and_training_from_scratch() -> None:
    beit, second = protocol_of("finetune:beit_base"), protocol_of("finetune:beit_v2_base")
    assert (beit.lr, second.lr) == (4e-3, 5e-4)
    for preset in (beit, second):
        assert (preset.head_init_scale, preset.crop_fraction, preset.clip_norm, preset.layer_decay) == (0.001, 0.875, None, 0.65)
    scratch = protocol_of("finetune:scratch")
    assert (scratch.layer_decay, scratch.epochs, scratch.lr, scratch.warmup_epochs) == (None, 300, 1e-3, 5)


def test_unasked_it_is_the_short_one_and_never_against_random() -> None:
    assert next(iter(presets_of("finetune"))) == protocol_of("finetune").preset == "short"
    assert not FineTune.with_random
    for name in presets_of("finetune"):
        assert protocol_of(f"finetune:{name}").title == f"finetune:{name}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "both"}, r"'finetune' cannot pool by 'both'\. Allowed: mean or cls"),
        ({"epochs": 5, "warmup_epochs": 5}, r"The warm-up of 5 epochs would not end within the 5 epochs\. Set warmup_epochs"),
        ({"lr": 0}, "lr is 0; allowed: above 0"),
        ({"min_lr": -1e-3}, r"min_lr is -0\.001; allowed: 0 or more"),
        ({"drop_path": 1.5}, r"drop_path is 1\.5; allowed: 0 to 1"),
        ({"smoothing": 1}, "must stay below 1"),
        ({"layer_decay": 0}, "layer_decay is 0; allowed: above 0, to 1, or null"),
        ({"clip_norm": 0}, "clip_norm is 0; allowed: above 0, or null"),
        ({"crop_fraction": 1.2}, r"crop_fraction is 1\.2; allowed: at most 1"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0\.9, 1\.0\); allowed: two numbers"),
        ({"rand_augment": "strong"}, "rand_augment is 'strong'"),
        ({"interpolation": "area"}, "no interpolation 'area'"),
        ({"crop_scale": (0.5, 0.1)}, "two shares"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"batch_size": 0}, "batch_size is 0; allowed: above 0"),
    ],
)
def test_values_that_are_not_allowed_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FineTune(**settings)


def test_values_of_another_type_are_refused_with_the_name_of_the_setting() -> None:
    with pytest.raises(SettingsError, match=r"finetune: precision = 'fp16'"):
        protocol_of("finetune:base", {"precision": "fp16"})
    with pytest.raises(SettingsError, match=r"no setting 'layerdecay'.*Did you mean 'layer_decay'"):
        protocol_of("finetune:base", {"layerdecay": 0.5})
