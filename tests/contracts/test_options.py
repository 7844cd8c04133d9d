"""Every option of everything registered: a value of another type is refused by name, and the default passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import pytest

from mapet.compat import VisionTransformer
from mapet.errors import UsageError
from mapet.evaluation.presets import PROTOCOLS, protocol_of, setting_names
from mapet.models import create_backbone
from mapet.objectives import OBJECTIVES, create_objective
from mapet.registry import options_of
from mapet.tokenizers.base import TOKENIZERS
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import FEATURES, restore_features
from tests.contracts.tiny_objectives import BACKBONE, MODEL, NEEDED, SMALL

GIVEN = ("self", "backbone", "vocab_size")
# What no option takes, and what only some do: a value is wrong where the type of the option does not name it.
NAN, INFINITY = float("nan"), float("inf")
WRONG: tuple[Any, ...] = ("abc", "3", True, 1.5, 3, None, [1], [], {"a": 1}, NAN, INFINITY, b"x", ("a", None), object())
# Of the right type for some options, and mostly out of their range.
ODD: tuple[Any, ...] = (-1, 0, 7, -0.5, 1e-9, "", "no_such")


def _fits(annotation: Any, value: Any) -> bool:
    """Whether a value belongs to the type of an option, by the text of the type and not by the library that checks."""
    text = str(annotation)
    if annotation is Any:
        return True
    if value is None:
        return "None" in text
    if isinstance(value, bool):
        return "bool" in text
    if isinstance(value, int | float):
        return math.isfinite(value) and ("float" in text or (isinstance(value, int) and "int" in text))
    if isinstance(value, str):
        return "str" in text or f"'{value}'" in text
    if isinstance(value, list | tuple):
        return ("Sequence" in text or "tuple" in text) and all(type(item) in (int, float) for item in value)
    return isinstance(value, dict) and ("dict" in text or "Mapping" in text)


def _cases() -> list:
    kinds: list[tuple[str, Any, Callable[..., Any]]] = []
    kinds += [(f"objective-{name}", OBJECTIVES.get(name), partial(_objective, name)) for name in OBJECTIVES]
    kinds += [(f"features-{name}", FEATURES.get(name), partial(_features, name)) for name in FEATURES]
    kinds += [(f"tokenizer-{name}", _constructor(name), partial(_tokenizer, name)) for name in TOKENIZERS]
    kinds += [(f"protocol-{name}", PROTOCOLS.get(name), partial(_protocol, name)) for name in PROTOCOLS]
    return [
        pytest.param(create, name, option.annotation, id=f"{title}-{name}")
        for title, kind, create in kinds
        for name, option in options_of(kind).items()
        if name in (setting_names(kind) if title.startswith("protocol") else options_of(kind)) and name not in GIVEN
    ]


@cache
def _backbone() -> VisionTransformer:
    return create_backbone(MODEL, **BACKBONE)


def _objective(name: str, **options: Any) -> object:
    needs = OBJECTIVES.get(name).needs
    needed = {key: value for need in needs for key, value in NEEDED.get(need, {}).items()}
    small = {key: value for key, value in SMALL.items() if key in options_of(OBJECTIVES.get(name))}
    return create_objective(name, backbone=_backbone(), vocab_size=8, **(needed | small | options))


def _features(name: str, **options: Any) -> object:
    needed = {"timm": {"model": "test_vit"}, "run": {"run": None, "backbone": {}}}.get(name, {})
    return restore_features({"name": name, "image_size": 32, "patch_size": 8, **needed, **options})


def _constructor(name: str) -> Any:
    kind = TOKENIZERS.get(name)
    return kind._restore if kind is FeatureKMeans else kind


def _tokenizer(name: str, **settings: Any) -> object:
    sizes = {"image_size": 32, "patch_size": 8, "vocab_size": 8, "code_dim": 4, "features": {}, "features_version": 1}
    sizes |= {"encoder": "vit_tiny_patch16_224", "encoder_options": {}}
    allowed = options_of(_constructor(name))
    return TOKENIZERS.get(name).from_settings({key: value for key, value in sizes.items() if key in allowed} | settings)


def _protocol(name: str, **settings: Any) -> object:
    return protocol_of(name, settings)


CASES = _cases()


@pytest.mark.parametrize(("create", "option", "annotation"), CASES)
def test_a_value_of_another_type_is_refused_by_name(create: Callable[..., Any], option: str, annotation: Any) -> None:
    for value in [value for value in WRONG if not _fits(annotation, value)]:
        with pytest.raises(UsageError, match=option):
            create(**{option: value})


@pytest.mark.parametrize(("create", "option", "annotation"), CASES)
def test_a_number_out_of_range_or_an_unknown_word_is_no_foreign_error(
    create: Callable[..., Any], option: str, annotation: Any
) -> None:
    for value in [value for value in ODD if _fits(annotation, value)]:
        with suppress(UsageError):
            create(**{option: value})
