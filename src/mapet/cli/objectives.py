"""`mapet objectives`: list, description, cost and figures of the objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.errors import SettingsError


def objectives(
    name: Annotated[str | None, typer.Argument(help="Explain this one: idea, source, options with defaults.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image to draw it on; by default scikit-learn's flower.")] = None,
    out: Annotated[Path | None, typer.Option(help="Draw what is seen and what is predicted; a file that ends in .png.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Draw it with this option of the objective; repeatable."),
    ] = None,
) -> None:
    """List the objectives, or explain one and draw it."""
    if name is None and (image or out or set_):
        raise SettingsError("Which objective is to be drawn? Give its name: mapet objectives NAME --out FIGURE.png")
    if name is not None and out is None and (image or set_):
        raise SettingsError(f"Where is the figure to be written? Give it too: mapet objectives {name} --out FIGURE.png")

    from mapet.objectives import OBJECTIVES

    if name is not None:
        OBJECTIVES.require(name)

    from mapet.workflows.objectives import draw_objective, explain_objective, table_of_objectives

    if name is None:
        print(*table_of_objectives(), sep="\n")
    elif out is None:
        print(*explain_objective(name), sep="\n")
    else:
        print(f"{out}: {draw_objective(name, image, out, set_ or [])}")
