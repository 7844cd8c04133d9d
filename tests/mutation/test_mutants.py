"""The list of mutants keeps up with the code: each still has a place to be planted in, and tests that exist."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutation.mutants import CHECKOUT, CODE, Mutant, every_mutant

MUTANTS = every_mutant()
LEAST_PLACES = 25


@cache
def functions_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted_and_names_tests_that_exist(mutant: Mutant) -> None:
    changed = mutant.applied((CODE / "mapet" / mutant.file).read_text(encoding="utf-8"))
    assert mutant.before != mutant.after
    compile(changed, mutant.file, "exec")
    assert mutant.test_ids
    for test in mutant.test_ids:
        file, _, function = test.partition("[")[0].partition("::")
        assert (CHECKOUT / file).is_file(), file
        assert not function or function in functions_in(CHECKOUT / file), test


def test_names_are_unique_and_the_places_that_matter_are_covered() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.place for mutant in MUTANTS}) >= LEAST_PLACES


def test_a_text_that_is_not_there_once_is_refused() -> None:
    for text in ("nothing", "a = 1\na = 1\n"):
        with pytest.raises(ValueError, match="and once is needed"):
            Mutant("place/mistake", "file.py", "a = 1", "a = 2", "").applied(text)
