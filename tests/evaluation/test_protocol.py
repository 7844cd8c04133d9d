from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mapet.errors import SettingsError
from mapet.evaluation.knn import KNN
from mapet.evaluation.linear import LinearProbe
from mapet.evaluation.protocol import Protocol, Result
from mapet.evaluation.subject import Subject

SETTINGS = [(kind, field.name) for kind in (KNN, LinearProbe) for field in dataclasses.fields(kind)]


def other(value: Any) -> Any:
    return {"mean": "cls", "cached": "paper"}[value] if isinstance(value, str) else value + 1


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_the_hash_changes_with_every_setting(kind: type[Protocol], name: str) -> None:
    changed = dataclasses.replace(kind(), **{name: other(getattr(kind(), name))})
    assert changed.hash != kind().hash
    assert changed.describe()[name] == getattr(changed, name)


def test_the_hash_is_that_of_the_settings_and_nothing_else() -> None:
    @dataclasses.dataclass(frozen=True)
    class Reordered(Protocol):
        name = "knn"
        temperature: float = 0.07
        neighbours: int = 20

        def accuracy(self, subject: Subject) -> float:
            return 0.0

    assert [field.name for field in dataclasses.fields(Reordered)] != [field.name for field in dataclasses.fields(KNN)]
    assert Reordered().hash == KNN().hash == KNN(neighbours=20).hash
    assert KNN().hash != LinearProbe().hash


def test_a_new_version_is_another_protocol(monkeypatch) -> None:
    before = KNN().hash
    monkeypatch.setattr(KNN, "version", 2)
    assert KNN().hash != before


def test_values_that_are_not_allowed_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match=r"no pooling 'median'.*Allowed: both, cls, mean"):
        KNN(pool="median")
    with pytest.raises(SettingsError, match=r"no preset 'cache' .*Did you mean 'cached'"):
        LinearProbe(preset="cache")


def result(protocol: Protocol, data: str = "digits") -> Result:
    return Result(protocol.describe(), protocol.hash, data, 10, 100, 50, 0.5, 0.25, 3.0)


def test_every_protocol_and_data_set_has_a_file_of_its_own() -> None:
    results = [result(KNN()), result(KNN(pool="cls")), result(KNN(neighbours=5)), result(LinearProbe()), result(KNN(), "other")]
    assert len({result.file_name for result in results}) == len(results)


def test_the_line_stands_next_to_random_initialisation() -> None:
    line = result(LinearProbe()).line()
    assert "linear (cached, mean)" in line
    assert "50.0 %" in line
    assert "random initialisation  25.0 %" in line
    assert "+25.0" in line
    assert LinearProbe().hash in line
