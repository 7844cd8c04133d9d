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
    compare: Annotated[bool, typer.Option("--compare", help="Show the settings in which the runs differ.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Show all runs on a live page on this machine.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the live page.")] = 8700,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known of each run, as JSON.")] = False,
) -> None:
    """List the runs below FOLDER: state, objective, steps, loss, time and evaluations."""
    import json

    from mapet.config.recipes import parse_options
    from mapet.errors import SettingsError
    from mapet.report.listing import differences, list_runs, selected, table

    if serve and (where or compare or as_json):
        raise SettingsError("--serve shows all runs: --where, --compare and --json have no meaning with it. Leave them out.")
    if serve:
        from mapet.report.live import serve as serve_runs

        serve_runs(folder, port)
        return
    listed = list_runs(folder)
    matching_runs = selected(listed, parse_options(where or []))
    if as_json:
        print(json.dumps([run.as_json() for run in matching_runs], indent=2))
    elif matching_runs:
        print(differences(matching_runs, folder) if compare else table(matching_runs, folder))
    else:
        print(f"{len(listed)} runs lie below {folder}; none has these settings." if listed else f"No run lies below {folder}.")
