"""Recipes: YAML files whose header has source, command, cost and expected results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from mapet.config.plain_yaml import parse_yaml
from mapet.config.settings import LOCAL_FEATURES, PretrainSettings, parse_settings, setting_names
from mapet.errors import SettingsError, nearest
from mapet.registry import allow, is_path, refuse_unless_allowed


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
        problem = "is no regular file" if path.exists() else "does not exist"
        raise SettingsError(f"The recipe file {path} {problem}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"The recipe file {path} is not text (UTF-8).") from None
    except OSError as error:
        raise SettingsError(f"The recipe file {path} cannot be read: {error.strerror}.") from None


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> PretrainSettings:
    """Settings of a recipe, with `key=value` overrides such as "training.lr=1e-3".

    What the overrides name is the user's choice (`mapet.allow`). A recipe that is a file names no code, weights or other files.

    Raises:
        SettingsError: The recipe, a key or a value is wrong, or two lengths of one thing are given.
        NotAllowedError: The file names what only the user may choose.
    """
    values = parse_yaml(recipe_text(recipe), f"The recipe '{recipe}'")
    if not isinstance(values, dict):
        raise SettingsError(f"The recipe '{recipe}' holds no settings. `mapet recipes digits` prints one that does.")
    values = {name: value for name, value in values.items() if value is not None}  # a section with every line commented out
    overridden: dict[str, Any] = {}
    for override in overrides:
        name, value = _apply(values, override)
        other = f"training.{_INSTEAD_OF[name]}" if name in _INSTEAD_OF else ""
        if value and overridden.get(other):
            raise SettingsError(f"Both {other} ({overridden[other]}) and {name} ({value}) are given; give one of them.")
        overridden[name] = value
        allow(*_texts(value))
    settings = parse_settings(values)
    if recipe not in recipe_names():
        refuse_foreign_names(settings)
    return settings


def refuse_foreign_names(settings: PretrainSettings) -> None:
    """Refuses settings out of a file that name code, weights to fetch, or files to open, unless the user typed the same names.

    Raises:
        NotAllowedError: Ends with the word to add.
    """
    if is_path(settings.objective.name):
        refuse_unless_allowed(settings.objective.name, "It is code that is not part of mapet, meant as the objective.")
    if settings.tokenizer.features not in LOCAL_FEATURES:
        refuse_unless_allowed(settings.tokenizer.features, "Features of this name take weights or code from elsewhere.")
    for options in (settings.objective.options, settings.tokenizer.options):
        for name in _texts([_entries(options, key) for key in _OPENED]):
            if name not in _OF_ITSELF:
                refuse_unless_allowed(name, "It is a file, a folder or a model that would be opened or fetched.")


# Options whose values are opened or fetched, and the teachers that are the encoder itself.
_OPENED = ("teacher", "checkpoint", "run")
_OF_ITSELF = ("self", "lagging")


def _entries(options: Any, key: str) -> list[Any]:
    """The values under `key`, at any depth."""
    if not isinstance(options, Mapping):
        return []
    return [value for name, value in options.items() if name == key] + [
        entry for value in options.values() for entry in _entries(value, key)
    ]


def _texts(value: Any) -> list[str]:
    """The texts in a plain value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs with YAML values, as a mapping."""
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise SettingsError(f"An option is given as key=value, not '{pair}'.")
        options[key] = parse_yaml(text, f"The value of '{key}'")
    return options


_KEY = re.compile(r"[A-Za-z_][\w.]*")

# A length in steps takes the place of one in epochs, and the other way round.
_INSTEAD_OF = {
    "training.steps": "epochs",
    "training.epochs": "steps",
    "training.warmup_steps": "warmup_epochs",
    "training.warmup_epochs": "warmup_steps",
}


def _apply(values: dict[str, Any], override: str) -> tuple[str, Any]:
    """Applies an override; returns the full name of the setting and the value."""
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
    return full, value


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
