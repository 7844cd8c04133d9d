"""Recipes: YAML files whose header says where they come from, how to run them, what they cost and what to expect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mapet.config.settings import PretrainSettings, parse_settings, setting_names
from mapet.errors import SettingsError, nearest


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def recipe_text(recipe: str) -> str:
    """The text of a recipe: one that comes along, or a YAML file of your own."""
    if recipe in recipe_names():
        return (_folder() / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"There is no recipe '{recipe}'. {nearest(recipe, recipe_names())} Or give the path of a YAML file.")
    if not path.is_file():
        raise SettingsError(f"The recipe file {path} does not exist.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"The recipe file {path} is not text (UTF-8).") from None


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> PretrainSettings:
    """Settings of a recipe, with `key=value` overrides such as "training.lr=1e-3".

    Raises:
        SettingsError: The recipe, a key or a value is wrong.
    """
    values = parse_yaml(recipe_text(recipe), f"The recipe '{recipe}'")
    if not isinstance(values, dict):
        raise SettingsError(f"The recipe '{recipe}' holds no settings. `mapet recipes digits` prints one that does.")
    values = {name: value for name, value in values.items() if value is not None}  # a section with every line commented out
    for override in overrides:
        _apply(values, override)
    return parse_settings(values)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs with YAML values, as a mapping."""
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise SettingsError(f"An option is given as key=value, not '{pair}'.")
        options[key] = parse_yaml(text, f"The value of '{key}'")
    return options


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 does; PyYAML would take it for text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse_yaml(text: str, what: str) -> Any:
    """The plain values in a YAML text; `what` names it where it is none (SettingsError)."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{what} is not valid YAML: {error}") from None


# A length in steps takes the place of one in epochs, and the other way round.
_INSTEAD_OF = {
    "training.steps": "epochs",
    "training.epochs": "steps",
    "training.warmup_steps": "warmup_epochs",
    "training.warmup_epochs": "warmup_steps",
}


def _apply(values: dict[str, Any], override: str) -> None:
    ((key, value),) = parse_options([override]).items()
    names = setting_names()
    full = key if _is_setting(key, names) else _by_last_part(key, names)
    *sections, last = full.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise SettingsError(f"'{section}' holds {values!r} instead of settings, so that '{full}' cannot be set in it.")
    values[last] = value
    values.pop(_INSTEAD_OF.get(full, ""), None)


def _is_setting(key: str, names: list[str]) -> bool:
    """Whether `key` is a setting, or an entry of one that holds options."""
    return key in names or any(key.startswith(f"{name}.") for name in names if name.endswith("options"))


def _by_last_part(key: str, names: list[str]) -> str:
    """`lr` for `training.lr`, where only one setting ends so."""
    matches = [name for name in names if name.endswith(f".{key}")]
    if len(matches) == 1:
        return matches[0]
    last_parts = {name.rpartition(".")[2]: name for name in names}
    close = get_close_matches(key, last_parts, n=1) if "." not in key else []
    matches = matches or [last_parts[name] for name in close]
    hint = f"It could be {' or '.join(matches)}." if matches else nearest(key, names)
    raise SettingsError(f"There is no setting '{key}'. {hint}")


def _folder() -> Any:
    return files("mapet.config") / "recipes"
