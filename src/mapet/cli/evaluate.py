"""`mapet evaluate`: what a backbone is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mapet.cli.options import Allow, ClassDepth, Device, MaxUnreadable, Split, Workers, located

if TYPE_CHECKING:
    from mapet.evaluation.protocol import Protocol, Result

Protocols = Annotated[
    str, typer.Argument(metavar="PROTOCOLS", help="Names from `mapet protocols`, such as knn,linear or linear:paper.")
]
Backbone = Annotated[
    str,
    typer.Argument(
        metavar="BACKBONE",
        help="A run directory, a published checkpoint, a Hugging Face folder or hf://, timm:NAME, random:NAME.",
    ),
]
DataOption = Annotated[str | None, typer.Argument(metavar="[DATA]", help="Labelled images; by default those of the run.")]
Pool = Annotated[
    str | None, typer.Option(help="How tokens become one vector: mean (of the patches), cls, both, or all of them in turn.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the protocols; repeatable.")]
Root = Annotated[Path | None, typer.Option(help="Of transfer: the folder in which data sets such as cars,food101 lie.")]
Download = Annotated[bool, typer.Option("--download", help="Of transfer: fetch named data sets that are missing.")]
Model = Annotated[str | None, typer.Option(help="Of a published checkpoint: timm's name of the model; else derived.")]
Option = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of timm.create_model, such as img_size=32; repeatable.")
]
ClassMap = Annotated[
    Path | None, typer.Option(help="Of classify: a file with the names of the head's classes in order, one a line.")
]
UseEma = Annotated[bool, typer.Option("--use-ema", help="Of classify: take the moving average of the weights.")]
Out = Annotated[Path | None, typer.Option(help="Where results are kept; by default in the run directory.")]
Random = Annotated[
    bool | None, typer.Option("--random/--no-random", help="Evaluate the random initialisation too (default: where it is cheap).")
]


def evaluate(
    protocols: Protocols,
    backbone: Backbone,
    data: DataOption = None,
    pool: Pool = None,
    set_: Set = None,
    root: Root = None,
    download: Download = False,
    model: Model = None,
    option: Option = None,
    class_map: ClassMap = None,
    use_ema: UseEma = False,
    out: Out = None,
    random: Random = None,
    split: Split = None,
    class_depth: ClassDepth = None,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
    allow: Allow = None,
) -> None:
    """Evaluate a backbone on labelled images, next to the same backbone at random initialisation."""
    from mapet.cli.evaluate_transfer import is_transfer, transfer
    from mapet.cli.target import kind_of, load_target

    titles = [title.strip() for title in protocols.split(",") if title.strip()] or [""]
    _refuse_wrong_words(titles, backbone, data)

    from mapet.config.recipes import parse_options
    from mapet.errors import SettingsError
    from mapet.evaluation.evaluate import evaluate as run_evaluation
    from mapet.evaluation.presets import protocols_of
    from mapet.runtime.device import choose_device
    from mapet.runtime.rank import this_process_is_first

    settings = parse_options(set_ or []) | ({} if pool is None else {"pool": pool})
    work: dict[str, Any] = {
        "device": choose_device(device),
        "folder": out,
        "workers": workers,
        "max_unreadable": max_unreadable,
        "with_random": random,
    }
    if not is_transfer(titles):
        data = located(data, backbone, split, class_depth)
    elif split is not None or class_depth is not None:
        raise SettingsError(
            "--split and --class-depth are about one place. Of transfer, write them behind the place: FOLDER#split=test"
        )
    of_model = {"model": model, "options": parse_options(option or []), "class_map": class_map, "use_ema": use_ema}
    if is_transfer(titles):
        return transfer(titles[0], backbone, data, root, download, settings, of_model, **work)
    kind, measured = kind_of(titles), protocols_of(titles, settings)
    target = load_target(kind, backbone, data, **of_model)
    results = run_evaluation(target, data, measured, **work)
    if this_process_is_first():
        _print(measured, results, folder=out or (target.run.evaluations if target.run else None))


def _refuse_wrong_words(titles: list[str], backbone: str, data: str | None) -> None:
    """Refuses unknown protocols and what is not there before the seconds that the imports of an evaluation take."""
    from mapet.checkpoints.place import require_place
    from mapet.cli.evaluate_transfer import is_transfer, protocol_title
    from mapet.cli.target import BACKBONE, kind_of
    from mapet.data.sources import require_location
    from mapet.evaluation.presets import settings_of

    for title in [protocol_title(titles[0])] if is_transfer(titles) else titles:
        settings_of(title)
    if is_transfer(titles) or kind_of(titles) == BACKBONE:
        require_place(backbone)
    if data is not None and not is_transfer(titles):
        require_location(data)


def _print(measured: Sequence[Protocol], results: Sequence[Result], folder: Path | None) -> None:
    """Every result of one command, and its path."""
    first = results[0]
    print(f"{first.data}: {first.train_images} training and {first.test_images} test images, {first.classes} classes")
    if heading := measured[0].heading(first):
        print(heading)
    for protocol, result in zip(measured, results, strict=True):
        print(protocol.line(result))
    print(f"Kept in {folder}" if folder else "Not kept. To keep results: --out FOLDER")
