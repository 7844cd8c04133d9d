"""`mapet report`: one page about one run, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Allow


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories: the --out of `mapet pretrain`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page, NAME.html, or a folder that is there; by default report.html in the run, report-with-OTHERS.html in "
            "the first of several."
        ),
    ] = None,
    allow: Allow = None,
) -> None:
    """Write one self-contained HTML page with figures: what was run, what it was worth, what the model sees."""
    from mapet.runtime.run_directory import RunDirectory

    directories = [RunDirectory.existing(run) for run in runs]
    from mapet.report.html import write_report

    page = write_report(directories, out)
    print(f"Report: {page}")
    print(f"Figures: {page.with_name(f'{page.stem}-figures')}")
