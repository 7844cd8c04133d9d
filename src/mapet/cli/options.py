"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of images (flat or one folder a class), Parquet or tar files (WebDataset; a folder, a file or a quoted "
        "pattern), CSV list, hf://datasets/OWNER/NAME, or 'digits'.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory: the --out of `mapet pretrain`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images.")]
MaxUnreadable = Annotated[int, typer.Option(min=0, help="Unreadable images that may be skipped; they are named either way.")]
Seed = Annotated[int, typer.Option(help="Determines every random draw.")]
