"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mapet.registry import allow

if TYPE_CHECKING:
    from mapet.data.skipped import UnreadableImages
    from mapet.tokenizers.base import Tokenizer


def _existing(data: str | None) -> str | None:
    """Refuses images that are not there before the seconds that importing torch takes."""
    if data is not None:
        from mapet.data.sources import require_location

        require_location(data)
    return data


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        callback=_existing,
        help="Folder of images (flat or one folder a class), Parquet or tar files (WebDataset; a folder, a file or a quoted "
        "pattern), CSV list, hf://datasets/OWNER/NAME, or 'digits'. #class-depth=2 behind a folder takes the folders two "
        "levels below it as classes.",
    ),
]
Split = Annotated[
    str | None, typer.Option(help="The part of DATA that is evaluated on, such as test; by default val if there is one, else test.")
]
ClassDepth = Annotated[
    int | None, typer.Option(min=1, help="How many levels below DATA, or its train/ and val/, the class folders lie; by default 1.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory: the --out of `mapet pretrain`.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images.")]
MaxUnreadable = Annotated[int, typer.Option(min=0, help="Unreadable images that may be skipped; they are named either way.")]


def _allow(names: list[str] | None) -> list[str]:
    """Permits files to name these, for as long as the command runs."""
    allow(*(names or ()))
    return names or []


Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        callback=_allow,
        help="Code, data or weights that a file which is read may name, such as package.module:Class or hf://datasets/OWNER/NAME; "
        "by default none; repeatable.",
    ),
]
EvaluateOn = Annotated[
    list[str] | None,
    typer.Option(metavar="DATA", help="Labelled images to evaluate on, instead of those of the pre-training; repeatable."),
]
Part = Annotated[str, typer.Option(metavar="I/N", help="Take every N-th run, from the I-th on; jobs meet in --out.")]
MaxHours = Annotated[float | None, typer.Option(min=0, help="Refuse what would train for longer.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with an estimate of its time, and stop.")]
Seed = Annotated[int, typer.Option(help="Determines every random draw.")]


def print_tokenizer(out: Path, tokenizer: Tokenizer, unreadable: UnreadableImages) -> None:
    """What was fitted or trained and how to use it, from the first process; and what was skipped."""
    from mapet.runtime.processes import this_process

    if this_process().rank == 0:
        rows, columns = tokenizer.grid_size
        facts = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in tokenizer.fit_report.items())
        print(f"Tokenizer: {out}, {tokenizer.vocab_size:,} tokens for {rows} x {columns} patches")
        print(f"Its fit: {facts}")
        print(f"Next: mapet tokenize DATA --tokenizer {out} --out STORE    mapet codebook {out} DATA --out PAGE")
    if unreadable.summary():
        print(unreadable.summary())


def _short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def located(data: str | None, address: str, split: str | None, class_depth: int | None) -> str | None:
    """`data`, or the data of the run at `address`, with --split and --class-depth; `data` as it is without these.

    Raises:
        SettingsError: There is neither data nor a run.
    """
    from mapet.data.address import with_options
    from mapet.data.sources import recorded_location
    from mapet.errors import SettingsError
    from mapet.evaluation.tokens.data import run_at

    if split is None and class_depth is None:
        return data
    run = run_at(Path(address)) if data is None else None
    if data is None and run is None:
        raise SettingsError("--split and --class-depth are about DATA, and there is none. Give DATA.")
    if data is None and run is not None:
        data = recorded_location(run.read_config().get("data"), run.config)
    return with_options(data or "", split, class_depth)
