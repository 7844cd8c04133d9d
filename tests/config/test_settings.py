from __future__ import annotations

import copy
import math

import pytest

from mapet.config.settings import PretrainSettings, parse_settings, setting_names
from mapet.errors import SettingsError

VALUES = {"training": {"steps": 10}}


def with_value(name: str, value: object) -> dict:
    values = copy.deepcopy(VALUES)
    *sections, last = name.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return values


def test_defaults_are_those_of_the_paper() -> None:
    training = parse_settings(VALUES).training
    assert (training.lr, training.min_lr, training.warmup_lr, training.weight_decay) == (1.5e-3, 1e-5, 1e-6, 0.05)
    assert (training.betas, training.eps, training.clip_norm) == ((0.9, 0.999), 1e-8, 3.0)
    assert (training.drop_path, training.color_jitter) == (0.1, 0.4)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("training.lrr", "training.lr"),
        ("trainin", "training.lr"),
        ("mechanics.worker", "mechanics.workers"),
        ("sead", "seed"),
        ("backbone.nam", "backbone.name"),
    ],
)
def test_unknown_keys_name_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=rf"There is no setting '{name}'\. (Did you mean '{nearest}'\? )?Allowed: .*{nearest}"):
        parse_settings(with_value(name, 1))


def test_an_unknown_key_near_a_known_one_is_a_question() -> None:
    with pytest.raises(SettingsError, match=r"Did you mean 'training\.weight_decay'"):
        parse_settings(with_value("training.weigth_decay", 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.lr", "fast"),
        ("training.lr", 0),
        ("training.lr", math.nan),
        ("training.lr", math.inf),
        ("training.betas", [0.9, 1.0]),
        ("training.std", [0.2, 0.2, 0.0]),
        ("training.precision", "fp16"),
        ("training.batch_size", 0),
        ("training.batch_size", 1.5),
        ("training.drop_path", 1.0),
        ("training.clip_norm", 0),
        ("training.steps", -1),
        ("image_size", None),
        ("backbone.options", "big"),
        ("mechanics.workers", -1),
        ("mechanics.checkpoint_every", 0),
        ("mechanics", "fast"),
        ("view.name", "random"),
        ("view.count", 0),
        ("view.scale", [0.9, 0.2]),
    ],
)
def test_values_that_are_not_allowed_are_shown_with_their_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(with_value(name, value))
    assert str(caught.value).startswith(name)
    assert " = " in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("training", [{}, {"steps": 10, "epochs": 2}])
def test_a_run_has_one_length(training: dict) -> None:
    with pytest.raises(SettingsError, match=r"give either training\.epochs or training\.steps"):
        parse_settings({"training": training})


def test_the_length_is_not_optional() -> None:
    with pytest.raises(SettingsError, match="training is missing"):
        parse_settings({})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("training.lr", True, "a number"),
        ("training.lr", "1e-3", "a number"),
        ("training.color_jitter", True, "a number"),
        ("training.betas", [True, 0.9], "a number"),
        ("training.betas", [0.9, 0.9, 0.9], "a list whose length is at most 2"),
        ("seed", False, "a whole number"),
        ("training.batch_size", True, "a whole number"),
        ("view.flip", 1, "true or false"),
        ("mechanics.activation_checkpointing", "yes", "true or false"),
        ("mechanics.device", 0, "text"),
        ("objective.name", False, "text"),
        ("training.precision", 32, "'fp32' or 'bf16'"),
        ("image_size", 0, "at least 1"),
    ],
)
def test_f17_a_value_of_another_kind_is_refused_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"^{name}.* = .* is not allowed\. Allowed: {allowed}\. For example, the default: {name}="
    ):
        parse_settings(with_value(name, value))


@pytest.mark.parametrize("name", [name for name in setting_names() if not name.startswith("mechanics.")])
def test_the_hash_of_the_science_changes_with_every_science_setting(name: str) -> None:
    settings = parse_settings(VALUES)
    value = settings
    for part in name.split("."):
        value = getattr(value, part)
    changed = {
        int: lambda: value + 1,
        float: lambda: value * 0.5 if value else 0.25,
        bool: lambda: not value,
        str: lambda: {"fp32": "bf16", "fixed": "online"}.get(value, value + "x"),
        tuple: lambda: [entry * 0.5 for entry in value],
        dict: lambda: {**value, "depth": 1},
        type(None): lambda: 2.0,
    }[type(value)]()
    values = with_value(name, changed)
    if name == "training.epochs":
        del values["training"]["steps"]
    assert parse_settings(values).science_hash != settings.science_hash


@pytest.mark.parametrize("name", [name for name in setting_names() if name.startswith("mechanics.")])
def test_mechanics_are_no_science(name: str) -> None:
    others = {"device": "cuda:3", "activation_checkpointing": True, "compile": True, "parallel": "fsdp"}
    value = others.get(name.removeprefix("mechanics."), 7)
    changed = parse_settings(with_value(name, value))
    assert changed != parse_settings(VALUES)
    assert changed.science_hash == parse_settings(VALUES).science_hash


def test_the_hash_depends_on_values_only() -> None:
    one = parse_settings({"seed": 1, "training": {"steps": 10, "lr": 1e-3}})
    other = parse_settings({"training": {"lr": 0.001, "steps": 1e1}, "seed": 1})
    assert one.science_hash == other.science_hash
    assert parse_settings(one.model_dump(mode="json")).science_hash == one.science_hash


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_settings(VALUES).seed = 1  # type: ignore[misc]


def test_setting_names_are_dotted() -> None:
    assert {"seed", "training.lr", "objective.options", "mechanics.device"} <= set(setting_names())
    assert "training" not in setting_names()
    assert len(PretrainSettings.model_fields) < len(setting_names())


def test_a_rate_that_would_rise_to_its_minimum_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"training\.min_lr is 0\.1, above training\.lr, which is 0\.001"):
        parse_settings({"training": {"steps": 1, "lr": 1e-3, "min_lr": 0.1}})
