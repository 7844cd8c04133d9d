"""`mapet compare`: which pre-training is better, and is the difference real?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapet.cli.options import Allow, Data, DryRun, EvaluateOn, MaxHours, Part

if TYPE_CHECKING:
    from mapet.compare.compare import Comparison


def compare(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; the same command goes on there.")],
    recipe: Annotated[str, typer.Option(help="A name from `mapet recipes`, or a YAML file.")],
    objectives: Annotated[
        str, typer.Option(help="Names from `mapet objectives`. The first one is what the others are compared with.")
    ] = "mim,pim,mapet",
    tokenizers: Annotated[
        str,
        typer.Option(help="Features to fit (coates, pixels), or paths of saved tokenizers; by default what the recipe has."),
    ] = "",
    backbones: Annotated[str, typer.Option(help="timm's names; by default that of the recipe.")] = "",
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Further settings that the grid varies; repeatable.")
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="Settings of which every cell chooses one, such as lr=1e-3,3e-3: by the first protocol on held-out training "
            "images; repeatable.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every cell.")] = 3,
    evaluate_on: EvaluateOn = None,
    protocols: Annotated[str, typer.Option(help="Names from `mapet protocols`.")] = "knn,linear",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of all runs; repeatable.")] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="steps: as many for every cell; rows: as many rows through the blocks as the baseline; seconds: as long as the "
            "baseline, by a few timed steps."
        ),
    ] = "steps",
    part: Part = "1/1",
    max_hours: MaxHours = None,
    dry_run: DryRun = False,
    allow: Allow = None,
) -> None:
    """Compare pre-trainings that differ in nothing but what you name, over several seeds, with intervals."""
    from mapet.compare.compare import Comparison, refuse_longer
    from mapet.compare.grid import Grid, parse_vary

    grid = Grid(
        names_of(objectives), names_of(tokenizers), names_of(backbones), parse_vary(vary or []), parse_vary(tune or []), seeds
    )
    comparison = Comparison(out, data, recipe, grid, names_of(protocols), set_ or [], budget, evaluate_on or [])
    if dry_run or max_hours is not None:
        refuse_longer(comparison.plan(), max_hours)
        if dry_run:
            return
    carry_out_and_print(comparison, part)


def carry_out_and_print(comparison: Comparison, part: str) -> None:
    """Trains and evaluates what is left of a comparison, and prints what differs.

    Raises:
        FailedRunError: Some runs failed.
    """
    from mapet.compare.compare import part_of
    from mapet.compare.results import ComparisonResults
    from mapet.compare.table import sentences
    from mapet.errors import FailedRunError

    share = part_of(part)
    comparison.begin()
    failed = comparison.run(share)
    results = ComparisonResults(comparison.manifest, comparison.tasks)
    for sentence in sentences(results.rows):
        print(sentence)
    print(f"Comparison: {comparison.page}")
    if failed:
        raise FailedRunError(f"{len(failed)} runs failed: {failed[0]} The same command tries them again.")


def names_of(text: str) -> tuple[str, ...]:
    """Names with commas between them; those inside brackets belong to a name."""
    return tuple(name.strip() for name in re.split(r",(?![^\[]*\])", text) if name.strip())
