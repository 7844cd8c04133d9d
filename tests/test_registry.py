from __future__ import annotations

import math
import sys
from contextvars import copy_context

import pytest

from mapet.errors import NotAllowedError, SettingsError
from mapet.registry import Registry, allow

REGISTRY: Registry = Registry(
    "number", {"floor": "math:floor", "pi": "math:pi", "lost": "math:no_such", "gone": "no_such_module:x"}
)


def test_names_and_typed_paths_are_found() -> None:
    assert REGISTRY.get("floor") == copy_context().run(REGISTRY.get_or_import, "math:floor") == math.floor
    assert list(REGISTRY) == ["floor", "pi", "lost", "gone"]
    assert "floor" in REGISTRY
    assert "math:floor" not in REGISTRY


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flor", "There is no number called 'flor'. Did you mean 'floor'"),
        ("lost", "The number 'lost' cannot be imported"),
        ("gone", "The number 'gone' cannot be imported: No module named 'no_such_module'"),
        ("math:tau2", "The number 'math:tau2' cannot be imported"),
        ("math:", "There is no number called 'math:'"),
        ("pi", "The number 'pi' is 3.14.*, not anything that can be called"),
        ("a b:c", "There is no number called 'a b:c'"),
    ],
)
def test_others_are_refused_in_words(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        copy_context().run(REGISTRY.get_or_import, name)


def test_what_a_file_names_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: a path needs the user's word, and the word is in the message."""
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(NotAllowedError, match=r"A file names 'this:s'.*not imported.*add --allow this:s \(in Python: mapet.allow"):
        REGISTRY.get("this:s")
    assert "this" not in sys.modules


def test_the_kind_is_checked_before_any_call() -> None:
    """F1: a word of the user names an objective, and not whatever can be called."""
    classes: Registry = Registry("dictionary", {}, base="builtins:dict")
    context = copy_context()
    context.run(allow, "collections:OrderedDict", "os:system")
    assert context.run(classes.get, "collections:OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(SettingsError, match=r"The dictionary 'os:system' is <built-in function system>, not a subclass of"):
        context.run(classes.get, "os:system")


@pytest.mark.parametrize("name", [":x", "..:x", ".a:x"])
def test_malformed_paths_are_refused_in_words(name: str) -> None:
    with pytest.raises(SettingsError, match="number"):
        REGISTRY.get(name)
