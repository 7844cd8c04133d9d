"""`mapet evaluate transfer`: one backbone on several data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "transfer"


def is_transfer(titles: list[str]) -> bool:
    """Whether the name is a transfer: "transfer", or "transfer:PROTOCOL"."""
    return len(titles) == 1 and titles[0].partition(":")[0] == NAME


def protocol_title(title: str) -> str:
    """The protocol for every data set; the linear probe unless there is one behind "transfer:"."""
    return title.partition(":")[2] or "linear"


def transfer(
    title: str,
    address: str,
    sets: str | None,
    root: Path | None,
    download: bool,
    settings: Mapping[str, Any],
    of_model: Mapping[str, Any],
    **work: Any,
) -> None:
    """Evaluates a backbone on every data set and prints a table.

    Args:
        title: "transfer" (by the linear probe), or with a protocol behind it: "transfer:linear:paper".
        address: The backbone, or what else the protocol evaluates.
        sets: Names of data sets, or locations, with commas between them.
        root: Where named sets lie.
        download: Fetch those that are missing.
        settings: Of `--set`.
        of_model: Further arguments of `load_target`.
        work: Further arguments of `evaluate_transfer`.
    """
    from mapet.cli.target import kind_of, load_target
    from mapet.data.named_sets import NAMED_SETS
    from mapet.errors import SettingsError
    from mapet.evaluation.presets import protocols_of
    from mapet.evaluation.transfer import evaluate_transfer, transfer_locations
    from mapet.runtime.rank import this_process_is_first

    if not sets:
        raise SettingsError(
            f"Which data sets? mapet evaluate {NAME} BACKBONE cars,food101 --root FOLDER. Known by name: {', '.join(NAMED_SETS)}."
        )
    protocol, *others = protocols_of([protocol_title(title)], settings)
    if others:
        raise SettingsError("A transfer takes one pool: --pool mean, cls or both.")
    locations = transfer_locations(sets.split(","), root, download=download)
    loaded = load_target(kind_of([protocol.name]), address, sets, **of_model)
    results = evaluate_transfer(loaded, locations, protocol, **work)
    if not this_process_is_first():
        return
    pool = f", pool {protocol.pool}" if protocol.pools else ""
    print(f"{loaded.title}, protocol {protocol.title}{pool}, {protocol.hash}")
    _print_table(results)


def _print_table(results: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from mapet.evaluation.transfer import transfer_rows

    head, *rows = transfer_rows(results)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, emoji=False, width=100).print(table)
