from __future__ import annotations

import re
from contextvars import copy_context
from pathlib import Path

import pytest

from mapet.config import load_recipe, recipe_names, recipe_text
from mapet.config.recipes import parse_options
from mapet.errors import NotAllowedError, SettingsError
from mapet.registry import allow

HEADER = ("# Source:", "# Command:", "# Cost:", "# Expect:")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  epochs: 3\n  lr: 1e-3\nmechanics:\n")
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_say_what_they_are(name: str) -> None:
    settings = load_recipe(name)
    assert settings.science_hash
    lines = recipe_text(name).splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert lines[: len(header)] == header, "the header comes first, in one piece"
    assert len(header[0]) > 10
    assert not header[0].startswith(HEADER)
    for field in HEADER:
        (line,) = [line for line in header if line.startswith(field)]
        assert len(line) > len(field) + 3, f"{field} says nothing"
    assert name in next(line for line in header if line.startswith("# Command:"))


def test_the_digits_and_cifar10_recipes_are_there() -> None:
    assert {"digits", "cifar10"} <= set(recipe_names())


def test_values_are_set_by_full_name_and_by_last_part(recipe: str) -> None:
    settings = load_recipe(recipe, ["training.lr=2e-4", "batch_size=8", "mechanics.workers=0", "warmup_steps=5"])
    assert settings.training.lr == 2e-4
    assert settings.training.batch_size == 8
    assert settings.mechanics.workers == 0
    assert settings.training.warmup_steps == 5


def test_numbers_with_an_exponent_are_numbers_everywhere(recipe: str) -> None:
    changes = [
        "backbone.options.init_values=1e-5",
        "objective.options.a=-2E+3",
        "objective.options.b=1e",
        "objective.options.c=.5e1",
    ]
    settings = load_recipe(recipe, changes)
    assert settings.training.lr == 1e-3
    assert settings.backbone.options["init_values"] == 1e-5
    assert settings.objective.options == {"a": -2000.0, "b": "1e", "c": 5.0}


def test_entries_of_options_can_be_set_alone(recipe: str) -> None:
    settings = load_recipe(recipe, ["objective.options.num_context=5", "objective.name=mim", "objective.options.x=[1, 2]"])
    assert settings.objective.options == {"num_context": 5, "x": [1, 2]}


def test_steps_replace_epochs_and_the_other_way_round(recipe: str) -> None:
    training = load_recipe(recipe, ["steps=7"]).training
    assert (training.steps, training.epochs) == (7, None)
    training = load_recipe(recipe, ["training.warmup_epochs=0", "training.warmup_steps=5"]).training
    assert (training.warmup_steps, training.warmup_epochs) == (5, 0)


@pytest.mark.parametrize(
    ("one", "other"), [("steps=7", "epochs=1.5"), ("warmup_epochs=1", "warmup_steps=5"), ("epochs=1.5", "steps=7")]
)
def test_two_lengths_of_one_thing_are_refused(recipe: str, one: str, other: str) -> None:
    """Settings: neither of two lengths wins silently."""
    with pytest.raises(SettingsError, match=rf"Both training\.{one.replace('=', '.')[:5]}.* are given; give one of them"):
        load_recipe(recipe, [f"training.{one}", f"training.{other}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.options={patch_size:8,embed_dim:96}", r"'patch_size:8' has no value; write a blank behind the colon"),
        ("objective.options={num_context}", r"'num_context' has no value"),
        ("tokenizer.options={'stride:4': 1}", r"is no name of an option\. YAML needs a blank"),
        ("backbone.options={patch_size: null}", r"patch_size = None"),
        ("backbone.options={depth: 2, depth: 3}", r"'depth' is given twice"),
        ("backbone.options.patch_size=8.5", r"patch_size = 8\.5"),
        ("backbone.options.checkpoint_path=x.pth", r"no option 'checkpoint_path' that may be set"),
        ("backbone.options.pretrained=true", r"no option 'pretrained' that may be set"),
        ("backbone.options.pretrained_cfg={url: 'http://127.0.0.1/x'}", r"no option 'pretrained_cfg' that may be set"),
        ("backbone.options.block_fn=x", r"no option 'block_fn' that may be set"),
        ("backbone.options=&all {depth: *all}", r"aliases \(\*name\) are not read"),
        ("backbone.options={<<: {depth: 1}}", r"merges with << are not read"),
        ("tokenizer.vocab_size=100000000000", r"vocab_size = 100000000000"),
        ("training.batch_size=010", r"'010' is not a decimal number"),
        ("training.steps=1:30", r"'1:30' is not a decimal number"),
        (f"seed={'1' * 5000}", r"a number of 5,000 digits"),
        (f"backbone.options={'[' * 3000}", r"more than 50 levels"),
        ("seed=!!python/object/apply:os.getpid []", r"could not determine a constructor"),
        ("recipe\0.x=1", r"given as key=value"),
        ("seed=\0", r"not valid YAML"),
    ],
)
def test_odd_values_end_in_words(recipe: str, override: str, message: str) -> None:
    """F4, F17, F18 and the missing blank behind a colon."""
    with pytest.raises(SettingsError, match=message):
        load_recipe(recipe, [override])


OWN = "training: {steps: 3}\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("objective: {name: 'own.code:Objective'}", "own.code:Objective"),
        ("tokenizer: {features: 'own.code:Features'}", "own.code:Features"),
        ("tokenizer: {features: 'timm:resnet18'}", "timm:resnet18"),
        ("tokenizer: {features: timm, options: {model: resnet18}}", "timm"),
        ("tokenizer: {features: pixels, options: {checkpoint: c.pth}}", "c.pth"),
        ("objective: {name: mvp, options: {teacher: resnet18}}", "resnet18"),
        ("objective: {name: mvp, options: {teacher: pixels, teacher_options: {run: elsewhere}}}", "pixels"),
    ],
)
def test_a_recipe_file_names_no_code_and_fetches_nothing(tmp_path: Path, text: str, word: str) -> None:
    """F1, F4: what a file names is the user's choice only where the user typed it too."""
    file = tmp_path / "own.yaml"
    file.write_text(OWN + text, encoding="utf-8")
    with pytest.raises(NotAllowedError, match=rf"add --allow {re.escape(word)} "):
        load_recipe(str(file))


def test_what_the_user_typed_is_allowed(tmp_path: Path) -> None:
    """F1: `--set objective.name=...` is a word of the user, and so is --allow."""
    file = tmp_path / "own.yaml"
    file.write_text(OWN + "tokenizer: {features: 'timm:resnet26'}", encoding="utf-8")

    def typed() -> None:
        assert load_recipe(str(file), ["objective.name=typed.code:Objective", "tokenizer.features=pixels"]).seed == 0
        allow("timm:resnet26")
        assert load_recipe(str(file)).tokenizer.features == "timm:resnet26"

    copy_context().run(typed)
    with pytest.raises(NotAllowedError):
        load_recipe(str(file))


def test_aliases_that_expand_without_end_are_refused_at_once(tmp_path: Path) -> None:
    """F18."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    file = tmp_path / "own.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SettingsError, match="aliases"):
        load_recipe(str(file))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", r"There is no setting 'training.lrr'\. Did you mean 'training.lr'"),
        ("name=mim", r"There is no setting 'name'\. It could be backbone\.name or objective\.name"),
        ("learning=1", "There is no setting 'learning'"),
        ("training.lr", "given as key=value, not 'training.lr'"),
        ("training.lr=", r"training\.lr = null"),
        ("training.lr=[1", r"The value of 'training\.lr' is not valid YAML"),
        ("training=1", "There is no setting 'training'"),
        ("objective.options.a.b=1", None),
    ],
)
def test_wrong_overrides_are_told_in_words(recipe: str, override: str, message: str | None) -> None:
    if message is None:
        assert load_recipe(recipe, [override]).objective.options == {"a": {"b": 1}}
        return
    with pytest.raises(SettingsError, match=message):
        load_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"training: [1", "is not valid YAML"),
        (b"", "holds no settings"),
        (b"- a\n- b", "holds no settings"),
        (b"\xff\xfe\x00", r"is not (text|valid YAML)"),
        (b"training: fast", "'training' holds 'fast' instead of settings"),
        (b"training: {steps: 1}\nmore: 1", "There is no setting 'more'"),
    ],
)
def test_wrong_recipes_are_told_in_words(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        load_recipe(str(path), ["training.lr=1"])


def test_recipes_that_are_not_there_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"There is no recipe 'digit'\. Did you mean 'digits'\? Allowed: .*path of a YAML file"):
        recipe_text("digit")
    with pytest.raises(SettingsError, match=r"none\.yaml does not exist"):
        recipe_text(str(tmp_path / "none.yaml"))


def test_options_are_yaml() -> None:
    assert parse_options(["a=1", "b=[1, x]", "c=", "d=1e-3", "e=a=b"]) == {"a": 1, "b": [1, "x"], "c": None, "d": 1e-3, "e": "a=b"}
