"""Comparisons of tiny runs, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mapet.compare.compare import Comparison
from mapet.compare.grid import Grid
from mapet.compare.results import ComparisonResults
from tests.tiny import LOCATION, tiny_values

GRID = Grid(("mim", "mapet", "simmim"), seeds=2)


def comparison(out: Path, grid: Grid = GRID, **changes: Any) -> Comparison:
    """On tiny images, from a recipe beside `out`."""
    recipe = out.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_values(training__steps=4, mechanics__checkpoint_every=4)))
    options: dict[str, Any] = {"protocols": ("knn",), "overrides": ["tokenizer.num_points=400"], **changes}
    return Comparison(out, LOCATION, str(recipe), grid, **options)


def carried_out(out: Path, grid: Grid = GRID, part: tuple[int, int] = (1, 1), **changes: Any) -> Comparison:
    made = comparison(out, grid, **changes)
    made.begin()
    assert made.run(part) == []
    return made


def results(made: Comparison) -> ComparisonResults:
    return ComparisonResults(made.manifest, made.tasks)
