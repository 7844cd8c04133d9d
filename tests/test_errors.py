from __future__ import annotations

import re

import pytest

from mapet import errors
from mapet.errors import MapetError, nearest


def classes() -> dict[str, type[MapetError]]:
    return {name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, MapetError)}


def drawn_tree() -> dict[str, str]:
    """Class to its parent, as drawn at the top of the module."""
    parents, path = {}, ["MapetError"]
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([│ ]*)[├└]── (\w+)", line)
        if found:
            depth = len(found[1]) // 4 + 1
            parents[found[2]] = path[depth - 1]
            path[depth:] = [found[2]]
    return parents


def test_the_tree_drawn_is_the_tree() -> None:
    assert drawn_tree() == {name: kind.__base__.__name__ for name, kind in classes().items() if kind is not MapetError}


def test_exit_codes_are_those_drawn() -> None:
    codes = {"UsageError": 2, "FailedRunError": 1, "RequeueError": 75, "InterruptedRunError": 130}
    for name, kind in classes().items():
        expected = next((code for base, code in codes.items() if issubclass(kind, classes()[base])), 1)
        assert kind.exit_code == expected, name
    assert [
        line for name, code in codes.items() for line in errors.__doc__.splitlines() if name in line and f"code {code})" in line
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mapett", "Did you mean 'mapet'? Allowed: mapet, mim, pim."), ("xyz", "Allowed: mapet, mim, pim.")],
)
def test_nearest(name: str, hint: str) -> None:
    assert nearest(name, ["pim", "mim", "mapet"]) == hint


def test_of_many_names_the_nearest_are_shown() -> None:
    names = [f"vit_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert nearest("vit_kk", names[:20]).count(", ") == 19
    said = nearest("vit_kk", names)
    assert said.startswith("Did you mean 'vit_k'? Allowed: 26 names, of which vit_k, ")
    assert said.count(", ") == 5
    far = nearest("0000", names)
    assert far.startswith("Allowed: 26 names, of which ")
    assert far.count(", ") == 5
