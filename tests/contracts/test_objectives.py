"""Every registered objective keeps every promise: a new one is tested by registering it. And who breaks one is caught."""

from __future__ import annotations

import pytest

from mapet.objectives import OBJECTIVES
from tests.contracts import objective_suite as suite
from tests.contracts.broken_objectives import BROKEN

CASES = [pytest.param(name, check, id=f"{name}-{check.__name__}") for name in OBJECTIVES for check in suite.checks_of(name)]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_objective(name: str, check: suite.Check) -> None:
    check(name)


@pytest.mark.parametrize("broken", list(BROKEN), ids=lambda broken: broken.__name__)
def test_broken_objective_is_caught(broken: type) -> None:
    name = f"{broken.__module__}:{broken.__name__}"
    with pytest.raises((AssertionError, RuntimeError), match=r"assert |not close|Unexpected key"):
        BROKEN[broken](name)


def test_what_broken_objectives_are_made_of_is_sound() -> None:
    for check in (suite.content_of_a_target_never_reaches_its_own_prediction, suite.gradient_reaches_all_but_the_unused):
        check("tests.contracts.broken_objectives:OpenMIM")
