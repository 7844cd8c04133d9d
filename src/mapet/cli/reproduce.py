"""`mapet reproduce`: a table or figure of a paper, at the size that fits your machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapet.cli.options import Allow, DryRun, EvaluateOn, MaxHours, Part

if TYPE_CHECKING:
    from mapet.compare.compare import Comparison


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="table1, table2, table4 to table7, fig2 to fig5, beyond-masking; without it, the list.")
    ] = None,
    data: Annotated[str | None, typer.Argument(help="Images; not needed at the size smoke.")] = None,
    size: Annotated[str, typer.Option(help="smoke (digits, minutes), small (Tiny-ImageNet, hours) or paper (ImageNet).")] = "smoke",
    out: Annotated[Path | None, typer.Option(help="Folder; by default reproduce-NAME-SIZE. The same command continues.")] = None,
    evaluate_on: EvaluateOn = None,
    tokenizers: Annotated[str, typer.Option(help="Other tokenizers: features to fit, or paths of saved ones.")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Another number of seeds.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of all runs; repeatable.")] = None,
    part: Part = "1/1",
    max_hours: MaxHours = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Begin the size paper without asking.")] = False,
    allow: Allow = None,
) -> None:
    """Reproduce a table or figure of MaPeT or Beyond Masking; the page shows the printed figures beside yours."""
    from mapet.cli.compare import carry_out_and_print, names_of
    from mapet.compare.published import FIGURES, comparison_of, load_reproduction

    if name is None:
        _print_list()
        return
    folder = out or Path(f"reproduce-{name}" if name in FIGURES else f"reproduce-{name}-{size}")
    if name in FIGURES:
        _figure(name, data or "digits", folder, names_of(tokenizers))
        return
    reproduction = load_reproduction(name)
    comparison = comparison_of(reproduction, size, folder, data, evaluate_on or [], names_of(tokenizers), seeds, set_ or [])
    print(f"{reproduction.title} ({reproduction.printed.source}), size {size}.\nPrinted: {reproduction.printed.expect}")
    is_planned = dry_run or size == "paper" or max_hours is not None
    if is_planned and not _is_confirmed(comparison, max_hours, dry_run, ask=size == "paper" and not yes):
        return
    carry_out_and_print(comparison, part)


def _print_list() -> None:
    from mapet.compare.published import FIGURES, load_reproduction, reproductions

    for name in reproductions():
        reproduction = load_reproduction(name)
        print(f"{name:15} {reproduction.title} ({reproduction.printed.source}); sizes: {', '.join(reproduction.sizes)}")
    print(f"{FIGURES[0]:15} What each patch sees under mim, pim and mapet, drawn")
    print(f"{'fig3 to fig5':15} What the codes of tokenizers look like: a codebook page")
    print("\nWhat Table 3 of MaPeT's paper holds is not known to this project, so that it cannot be reproduced.")


def _is_confirmed(comparison: Comparison, max_hours: float | None, dry_run: bool, ask: bool) -> bool:
    """Prints the plan; whether to begin."""
    from mapet.compare.compare import refuse_longer

    hours = comparison.plan()
    refuse_longer(hours, max_hours)
    return not dry_run and (not ask or typer.confirm(f"Begin about {hours:,.0f} hours of training?"))


def _figure(name: str, data: str, out: Path, tokenizers: tuple[str, ...]) -> None:
    """Fig. 2 draws what each patch sees; Figs. 3 to 5 show codes of tokenizers."""
    from mapet.cli.codebook import codebook
    from mapet.compare.grid import Cell, settings_of
    from mapet.compare.tokens import make_tokenizer
    from mapet.tokenizers.place import is_saved
    from mapet.workflows.objectives import draw_objective

    if name == "fig2":
        for objective in ("mim", "pim", "mapet"):
            print(f"{out / objective}.png: {draw_objective(objective, None, out / f'{objective}.png', [])}")
        return
    saved = []
    for tokenizer in tokenizers or ("coates", "pixels"):
        settings = settings_of(Cell("", tokenizer), 0, "digits" if data == "digits" else "cifar10")
        saved.append(tokenizer if is_saved(tokenizer) else str(make_tokenizer(data, settings, out / tokenizer, tokenizer)))
    codebook(saved, data, out=out)
