"""`mapet recipes`: what comes along."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe in full.")] = None) -> None:
    """List the recipes, or print one: where it comes from, the command, the cost, the figure to expect, all settings."""
    from mapet.config import recipe_names, recipe_text

    if name is not None:
        print(recipe_text(name), end="")
        return
    for recipe in recipe_names():
        print(f"{recipe:24} {recipe_text(recipe).splitlines()[0].lstrip('# ')}")
