"""`mapet reproduce`: tables of papers as comparisons, at three sizes, with the figures that were printed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from mapet.compare.compare import Comparison
from mapet.compare.grid import Grid, parse_vary
from mapet.compare.table import PrintedTable
from mapet.config.plain_yaml import parse_own_yaml
from mapet.data.labelled_digits import labelled_digits
from mapet.errors import SettingsError, nearest
from mapet.runtime.files import home_folder

SIZES = ("smoke", "small", "paper")
COMES_ALONG = "labelled digits"
FIGURES = ("fig2", "fig3", "fig4", "fig5")


@dataclass(frozen=True)
class Size:
    """A comparison in the form of a paper's table.

    Args:
        recipe: A name from `mapet recipes`.
        seeds: Of every cell.
        protocols: As `mapet evaluate` takes them.
        objectives: Of the grid; () where the tokens are evaluated alone.
        tokenizers: Of the grid.
        backbones: Of the grid.
        vary: As `--vary` takes it.
        set: As `--set` takes it.
        data: The images, where they come along.
        wants: The images that the user gives, in words.
        evaluates_on: Further labelled images that the user gives, in words.
    """

    recipe: str
    seeds: int
    protocols: tuple[str, ...]
    objectives: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    data: str = ""
    wants: str = ""
    evaluates_on: str = ""


@dataclass(frozen=True)
class Reproduction:
    """A table of a paper.

    Args:
        name: As the command line takes it.
        title: What it compares.
        printed: Its figures.
        sizes: Name to comparison.
    """

    name: str
    title: str
    printed: PrintedTable
    sizes: dict[str, Size] = field(default_factory=dict)

    def size(self, name: str) -> Size:
        """The comparison of a size.

        Raises:
            SettingsError: There is none.
        """
        if name not in self.sizes:
            raise SettingsError(f"{self.name} has no size '{name}'. {nearest(name, self.sizes)}")
        return self.sizes[name]


def reproductions() -> list[str]:
    """The tables there are."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load_reproduction(name: str) -> Reproduction:
    """The table called `name`.

    Raises:
        SettingsError: There is none.
    """
    if name not in reproductions():
        raise SettingsError(f"There is no table or figure '{name}' to reproduce. {nearest(name, [*reproductions(), *FIGURES])}")
    content: dict[str, Any] = parse_own_yaml((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), name)
    published = content["published"]
    rows = tuple(tuple(map(str, row)) for row in published["rows"])
    printed = PrintedTable(published["caption"], tuple(published["columns"]), rows, content["source"], content["expect"])
    sizes = {size: Size(**{key: _frozen(value) for key, value in values.items()}) for size, values in content["sizes"].items()}
    return Reproduction(name, content["title"], printed, sizes)


def comparison_of(
    reproduction: Reproduction,
    size: str,
    out: Path,
    data: str | None = None,
    evaluate_on: Sequence[str] = (),
    tokenizers: Sequence[str] = (),
    seeds: int | None = None,
    overrides: Sequence[str] = (),
) -> Comparison:
    """The comparison that reproduces a table.

    Args:
        reproduction: The table.
        size: Its size.
        out: The folder.
        data: The images; not needed where they come along.
        evaluate_on: Labelled images of other sets, where the table has such.
        tokenizers: In place of those of the size.
        seeds: In place of those of the size.
        overrides: Further settings, as `--set` takes them.

    Raises:
        SettingsError: Images are missing, or a name or setting is not allowed.
    """
    table_size = reproduction.size(size)
    command = f"mapet reproduce {reproduction.name} DATA --size {size}"
    if data is None and not table_size.data:
        raise SettingsError(f"{reproduction.name} at the size {size} needs images: {table_size.wants}. Give them: {command}")
    if table_size.evaluates_on == COMES_ALONG and not evaluate_on:
        evaluate_on = [labelled_digits(home_folder() / "labelled-digits")]
    elif table_size.evaluates_on and not evaluate_on:
        raise SettingsError(
            f"{reproduction.name} at the size {size} evaluates on other images: {table_size.evaluates_on}. Give them: {command} "
            "--evaluate-on LABELLED"
        )
    grid = Grid(
        table_size.objectives,
        tuple(tokenizers) or table_size.tokenizers,
        table_size.backbones,
        parse_vary(table_size.vary),
        seeds=seeds or table_size.seeds,
    )
    comparison = Comparison(
        out,
        data or table_size.data,
        table_size.recipe,
        grid,
        table_size.protocols,
        [*table_size.set, *overrides],
        evaluate_on=evaluate_on,
    )
    comparison.printed = reproduction.printed
    return comparison


def _folder() -> Any:
    return files("mapet.compare") / "presets"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
