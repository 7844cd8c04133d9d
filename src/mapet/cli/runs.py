"""`mapet runs`: past and running pre-trainings, a line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Searched with everything below it.")] = Path(),
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs with this setting, such as objective.name=mapet; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known of each run, as JSON.")] = False,
) -> None:
    """List the runs below FOLDER: state, objective, steps, loss, time and evaluations."""
    import json

    from mapet.config.recipes import parse_options
    from mapet.report.listing import list_runs, selected, table

    listed = list_runs(folder)
    found = selected(listed, parse_options(where or []))
    if as_json:
        print(json.dumps([run.as_json() for run in found], indent=2))
    elif found:
        print(table(found, folder))
    else:
        print(f"{len(listed)} runs lie below {folder}; none is as wanted." if listed else f"No run lies below {folder}.")
