from __future__ import annotations

import pytest

from mapet.errors import SettingsError
from mapet.registry import Registry

REGISTRY: Registry = Registry("number", {"pi": "math:pi", "lost": "math:no_such", "gone": "no_such_module:x"})


def test_names_and_paths_are_found() -> None:
    assert REGISTRY.get("pi") == REGISTRY.get("math:pi") == pytest.approx(3.14159, abs=1e-5)
    assert list(REGISTRY) == ["pi", "lost", "gone"]
    assert "pi" in REGISTRY
    assert "math:pi" not in REGISTRY


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pii", "There is no number called 'pii'. Did you mean 'pi'"),
        ("lost", "The number 'lost' cannot be imported"),
        ("gone", "The number 'gone' cannot be imported: No module named 'no_such_module'"),
        ("math:tau2", "The number 'math:tau2' cannot be imported"),
        ("math:", "There is no number called 'math:'"),
    ],
)
def test_others_are_refused_in_words(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        REGISTRY.get(name)


@pytest.mark.parametrize("name", [":x", "..:x", ".a:x"])
def test_malformed_paths_are_refused_in_words(name: str) -> None:
    with pytest.raises(SettingsError, match="number"):
        REGISTRY.get(name)
