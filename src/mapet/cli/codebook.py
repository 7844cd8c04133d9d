"""`mapet codebook`: scores of visual vocabularies, and example patches of their codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapet.cli.options import Allow, Data, Device, MaxUnreadable, Seed, Workers

if TYPE_CHECKING:
    from mapet.tokenizers.scoring.score import ScoredTokenizer


def codebook(
    tokenizers: Annotated[
        list[str], typer.Argument(metavar="TOK...", help="Tokenizers to compare: folders, weights files, or names such as k-clip.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for codebook.html, its figures and scorecard.json.")] = Path("codebook"),
    images: Annotated[int, typer.Option(min=2, help="Number of images, drawn by the seed.")] = 2000,
    split: Annotated[str, typer.Option(help="train, test or all.")] = "all",
    codes: Annotated[str | None, typer.Option(help="Codes to show, such as 12,77.")] = None,
    random: Annotated[int | None, typer.Option(min=1, help="Show so many codes drawn by the seed.")] = None,
    most_used: Annotated[int | None, typer.Option(min=1, help="Show so many of the most used codes.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
    allow: Allow = None,
) -> None:
    """Score tokenizers on the same images: use of codes, stability under small changes, information, example patches."""
    from mapet.tokenizers.place import require_place

    for tokenizer in tokenizers:
        require_place(tokenizer)

    from mapet.data.skipped import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.report.scorecard import CARD, FIGURES, CodeSelection, write_scorecards
    from mapet.runtime.device import choose_device
    from mapet.runtime.lock import only_writer
    from mapet.tokenizers.load import load_tokenizer
    from mapet.tokenizers.scoring.score import draw_images, score_tokenizer

    selection = CodeSelection(_numbers(codes), random, most_used)
    loaded = {title: load_tokenizer(name) for title, name in zip(_titles(tokenizers), tokenizers, strict=True)}
    for title, tokenizer in loaded.items():
        selection.check(tokenizer.vocab_size, title)
    unreadable = UnreadableImages(max_unreadable)
    with only_writer(out):
        source = draw_images(open_source(data, split), images, seed)
        torch_device = choose_device(device)
        scored = [
            score_tokenizer(tokenizer, source, title=title, seed=seed, device=torch_device, workers=workers, unreadable=unreadable)
            for title, tokenizer in loaded.items()
        ]
        page = write_scorecards(scored, source, out, selection=selection, seed=seed)
    _print_table(scored)
    print(f"Page: {page}\nFigures: {out / FIGURES}\nScorecard: {out / CARD}")
    if unreadable.summary():
        print(unreadable.summary())


def _numbers(codes: str | None) -> tuple[int, ...]:
    from mapet.errors import SettingsError

    try:
        return tuple(int(code) for code in codes.split(",")) if codes else ()
    except ValueError:
        raise SettingsError(f"--codes is '{codes}'; give numbers separated by commas, such as 12,77.") from None


def _titles(tokenizers: list[str]) -> list[str]:
    """The name of the folder, or the whole path where names repeat."""
    from mapet.errors import SettingsError

    names = [Path(name).resolve().name for name in tokenizers]
    titles = [name if names.count(name) == 1 else path for name, path in zip(names, tokenizers, strict=True)]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise SettingsError(f"The tokenizer {repeated[0]} is given twice. Give every tokenizer once.")
    return titles


def _print_table(scored: list[ScoredTokenizer]) -> None:
    """The scorecards side by side, best first."""
    from rich.console import Console
    from rich.table import Table

    from mapet.report.scorecard import rank, table_rows

    ranked = rank(scored)
    table = Table("", *(entry.title for entry in ranked), title=f"{ranked[0].card.images:,} images, best tokenizer first")
    for row in table_rows(ranked):
        table.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(table)
