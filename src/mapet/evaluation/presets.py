"""Protocols by name: `linear` or `linear:paper`, from the YAML files of the package, with changed settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from importlib.resources import files
from importlib.util import find_spec
from itertools import dropwhile, takewhile
from typing import TYPE_CHECKING, Any

from mapet.config.plain_yaml import parse_own_yaml
from mapet.config.settings import as_yaml_means_it
from mapet.errors import SettingsError, nearest
from mapet.registry import Registry, check_options

if TYPE_CHECKING:
    from mapet.evaluation.protocol import Protocol

ALL_POOLS = "all"
_NAMED = 3  # changed settings in the name of a protocol

PROTOCOLS: Registry[type[Protocol]] = Registry(
    "protocol",
    {
        "knn": "mapet.evaluation.probes.knn:KNN",
        "linear": "mapet.evaluation.probes.linear:LinearProbe",
        "attentive": "mapet.evaluation.probes.attentive:AttentiveProbe",
        "logistic": "mapet.evaluation.probes.logistic:LogisticProbe",
        "fewshot": "mapet.evaluation.probes.few_shot:FewShot",
        "finetune": "mapet.evaluation.finetuning.protocol:FineTune",
        "segment": "mapet.evaluation.segmentation.protocol:Segment",
        "tokens": "mapet.evaluation.tokens.protocol:TokenClassification",
        "classify": "mapet.evaluation.classify.protocol:Classify",
    },
    base="mapet.evaluation.protocol:Protocol",
)


def preset_text(name: str) -> str:
    """The YAML file of the protocol `name`: its presets, and in comments where their settings come from; "" where it has none."""
    if name == "transfer":
        raise SettingsError("A transfer is a protocol on several data sets, alone: mapet evaluate transfer:PROTOCOL BACKBONE SETS")
    if name not in PROTOCOLS:
        raise SettingsError(f"There is no protocol called '{name}'. {nearest(name, [*PROTOCOLS, 'transfer'])}")
    file = files("mapet.evaluation") / "protocols" / f"{name}.yaml"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def summary(name: str) -> str:
    """The protocol in a line: the first comment of its YAML file or, without one, the first line of its documentation."""
    lines = preset_text(name).splitlines() or (PROTOCOLS.get(name).__doc__ or "").strip().splitlines()
    return lines[0].lstrip("# ") if lines else ""


def preset_source(name: str, preset: str) -> str:
    """The comment above a preset in its YAML file; "" for a preset without a file."""
    if preset not in presets_of(name):
        return ""
    lines = preset_text(name).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"{preset}:"))
    behind = dropwhile(lambda line: not line.startswith("#"), reversed(lines[:at]))
    return "\n".join(reversed([*takewhile(lambda line: line.startswith("#"), behind)]))


def presets_of(name: str) -> dict[str, dict[str, Any]]:
    """Preset to settings, none without a YAML file; the first is the default."""
    presets = parse_own_yaml(preset_text(name), f"protocols/{name}.yaml") or {}
    return {str(preset): settings or {} for preset, settings in presets.items()}


def protocol_of(title: str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """The protocol that a user names.

    Args:
        title: "knn", "linear:paper", or `package.module:Class` of one's own.
        overrides: Settings to change.

    Raises:
        SettingsError: The name, a setting or its value is wrong.
    """
    name, settings = settings_of(title)
    return _build(PROTOCOLS.get_or_import(name), settings, overrides or {})


def settings_of(title: str) -> tuple[str, dict[str, Any]]:
    """The registered name and the preset's settings, without importing the protocol.

    Raises:
        SettingsError: There is no protocol or no preset of that name.
    """
    name, _, requested = title.partition(":")
    package = name.partition(".")[0]
    if name not in PROTOCOLS and requested and package and find_spec(package) is not None:
        return title, {}
    presets = presets_of(name)
    if not presets and not requested:
        return name, {}
    preset = requested or next(iter(presets))
    if preset not in presets:
        allowed = nearest(preset, presets) if presets else f"It has none: write '{name}' alone, and change settings by --set."
        raise SettingsError(f"The protocol '{name}' has no preset '{preset}'. {allowed}")
    return name, {**presets[preset], "preset": preset}


def _none_has(titles: Collection[str], key: str) -> str:
    """That no protocol of `titles` has the setting `key`."""
    if len(titles) == 1:
        return f"The protocol '{next(iter(titles))}' has no setting '{key}'."
    return f"None of {', '.join(titles)} has a setting '{key}'."


def protocols_of(titles: Sequence[str], overrides: Mapping[str, Any]) -> list[Protocol]:
    """Several protocols, each with those of the `overrides` that it has a setting for; naming one twice means it once.

    The pool "all" gives each of them once for every pool that it allows.

    Raises:
        SettingsError: No protocol has a setting of that name.
    """
    settings_of_title = {title: setting_names(type(protocol_of(title))) for title in dict.fromkeys(titles)}
    names = sorted({name for allowed in settings_of_title.values() for name in allowed})
    for key in overrides:
        if key not in names:
            raise SettingsError(f"{_none_has(settings_of_title, key)} {nearest(key, names)}")
    protocols: dict[str, Protocol] = {}
    for title, settings in settings_of_title.items():
        protocol_overrides = {key: value for key, value in overrides.items() if key in settings}
        pools = type(protocol_of(title)).allowed_pools if protocol_overrides.get("pool") == ALL_POOLS else ()
        for changes in [{**protocol_overrides, "pool": pool} for pool in pools] or [protocol_overrides]:
            protocol = protocol_of(title, changes)
            protocols.setdefault(protocol.hash, protocol)
    return [*protocols.values()]


def setting_names(kind: type[Protocol]) -> list[str]:
    """The settings of a protocol."""
    without = ("preset",) if kind.pools else ("preset", "pool")
    return [field.name for field in fields(kind) if field.name not in without]


def _build(kind: type[Protocol], preset: Mapping[str, Any], overrides: Mapping[str, Any]) -> Protocol:
    """With the settings that follow the `overrides`, and with what they change in the preset's name."""
    if not getattr(kind, "name", ""):
        raise SettingsError(f"The protocol {kind.__name__} has no name. Give the class an attribute `name`, a word.")
    names = setting_names(kind)
    for key in {**preset, **overrides}:
        if key not in [*names, "preset"]:
            raise SettingsError(f"The protocol '{kind.name}' has no setting '{key}'. {nearest(key, names)}")
    usual = _validated(kind, preset)
    built = _validated(kind, {**preset, **usual.follow(overrides), **overrides})
    changed = [name for name in overrides if name != "pool" and getattr(built, name) != getattr(usual, name)]
    changes = [f"{name}={_short(getattr(built, name))}" for name in changed[:_NAMED]] + ["..."] * (len(changed) > _NAMED)
    return replace(built, preset=", ".join([usual.preset, *changes])) if usual.preset and changed else built


def _validated(kind: type[Protocol], settings: Mapping[str, Any]) -> Protocol:
    """The protocol with `settings`, each a value of its own kind: true is no number."""
    values = {name: as_yaml_means_it(value) for name, value in settings.items()}
    return kind(**check_options(kind.name, kind, values, SettingsError))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value).replace(" ", "")
