"""`mapet compare`: which pre-training is better, and is the difference real?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mapet.compare.carry_out import carry_out, equal_steps, rows_per_step, seconds_per_step
from mapet.compare.grid import Cell, Grid
from mapet.compare.html import comparison_page
from mapet.compare.manifest import Manifest
from mapet.compare.results import ComparisonResults
from mapet.compare.scorecards import tokenizer_pages
from mapet.compare.table import PrintedTable, comma_separated, latex, markdown
from mapet.compare.tasks import tasks_of
from mapet.compare.tuning import Tuning
from mapet.errors import SettingsError, nearest
from mapet.runtime.files import atomic_file, write_text
from mapet.runtime.lock import only_writer
from mapet.runtime.progress import facts_once, format_seconds, say

_SECONDS_BETWEEN_PAGES = 60.0
BUDGETS = ("steps", "rows", "seconds")
_COSTS: dict[str, Callable[[Manifest, Cell], float]] = {"rows": rows_per_step, "seconds": seconds_per_step}


class Comparison:
    """The same pre-training in every cell of a grid, over seeds, and what differs.

    Args:
        out: Everything is written there; an existing comparison goes on, and may grow.
        data: Labelled images.
        recipe: A name from `mapet recipes`, or a YAML file.
        grid: What is compared.
        protocols: Names, as `mapet evaluate` takes them.
        overrides: Settings of all runs, as `--set` takes them.
        evaluate_on: Labelled images to evaluate on; by default `data`.
        budget: "steps", as many for every cell; "rows", as many rows through the blocks as the baseline; or "seconds", as long as
            the baseline by a few timed steps.

    Raises:
        SettingsError: A name is unknown, settings differ in what the grid does not vary, or `out` holds another comparison.
    """

    def __init__(
        self,
        out: Path,
        data: str,
        recipe: str,
        grid: Grid,
        protocols: Sequence[str] = ("knn", "linear"),
        overrides: Sequence[str] = (),
        budget: str = "steps",
        evaluate_on: Sequence[str] = (),
    ) -> None:
        if budget not in BUDGETS:
            raise SettingsError(f"There is no budget '{budget}'. {nearest(budget, BUDGETS)}")
        self.tasks = tasks_of(protocols, [*evaluate_on] or [data])
        if not grid.objectives and not all(task.is_of_tokenizers for task in self.tasks):
            raise SettingsError("Without objectives, only tokens are evaluated: by the protocols tokens:mlp and tokens:vit_tiny.")
        hashes = {task.title: task.protocol.hash for task in self.tasks}
        self.manifest = Manifest(out, data, recipe, overrides, grid, hashes, budget)
        self.manifest.check_equal()
        self.printed: PrintedTable | None = None
        self.tuning = Tuning(self.manifest, self.tasks[0])

    def plan(self) -> float:
        """Prints the plan, and returns the hours that the trainings take by a few timed steps, without evaluations."""
        manifest, grid = self.manifest, self.manifest.grid
        if not grid.cells:
            say("Nothing is pre-trained: the tokens are evaluated alone.")
            return 0.0
        seconds = {cell: seconds_per_step(manifest, cell) for cell in grid.cells}
        steps = {**equal_steps(manifest, [1.0] * len(grid.cells)), **manifest.steps}
        total = sum(seconds[cell] * steps[cell.name] for cell in grid.cells) * (grid.seeds + len(self.tuning.values))
        trials = f" and {len(self.tuning.trials)} trials" if self.tuning.trials else ""
        say(f"{len(grid.cells)} x {grid.seeds} runs{trials}, about {format_seconds(total)} of training on this machine:")
        for cell in grid.cells:
            cost = seconds[cell] * steps[cell.name]
            say(f"  {cell.title(grid)}: {steps[cell.name]:,} steps of {1000 * seconds[cell]:.0f} ms, {format_seconds(cost)} a run")
        return total / 3600

    def begin(self) -> None:
        """Writes or checks comparison.json, and fixes the steps of every cell."""
        manifest = self.manifest
        with only_writer(manifest.path):
            manifest.begin()
            if manifest.budget != "steps" and any(cell.name not in manifest.steps for cell in manifest.grid.cells):
                cost = [_COSTS[manifest.budget](manifest, cell) for cell in manifest.grid.cells]
                manifest.fix_steps(equal_steps(manifest, cost))

    @property
    def page(self) -> Path:
        """The page."""
        return self.manifest.out / "comparison.html"

    def run(self, part: tuple[int, int] = (1, 1)) -> list[str]:
        """Trains and evaluates what is left, and writes the page: between runs about once a minute, and at the end.

        Args:
            part: (i, n): this job takes every n-th run, from the i-th on.

        Returns:
            A sentence for every run that failed.
        """
        written = time.monotonic()

        def write_now_and_then() -> None:
            nonlocal written
            if time.monotonic() - written > _SECONDS_BETWEEN_PAGES:
                self.write(with_tokenizers=False)
                written = time.monotonic()

        with facts_once():
            failed = carry_out(self.manifest, self.tasks, self.tuning, part, write_now_and_then)
        self.write(failed)
        return failed

    def write(self, failed: Sequence[str] = (), with_tokenizers: bool = True) -> None:
        """Writes the page, the table in three forms, and the pictures, from what is finished.

        Args:
            failed: A sentence for every run that failed.
            with_tokenizers: Whether the tokenizers are scored, which takes minutes where they are networks on a CPU.
        """
        out = self.manifest.out
        tokenizers = tokenizer_pages(self.manifest) if with_tokenizers else ("", [])  # may take minutes: results are read after it
        results = ComparisonResults(self.manifest, self.tasks)
        page, pictures = comparison_page(results, failed, self.tuning, self.printed, tokenizers)
        for picture in pictures:
            for suffix, content in (("png", picture.png), ("svg", picture.svg)):
                if content:
                    with atomic_file(out / "figures" / f"{picture.name}.{suffix}") as unfinished:
                        unfinished.write_bytes(content)
        for suffix, form in (("md", markdown), ("tex", latex), ("csv", comma_separated)):
            write_text(out / f"table.{suffix}", form(results.rows))
        write_text(self.page, page)


def refuse_longer(hours: float, max_hours: float | None) -> None:
    """Refuses a comparison that would train for longer than `max_hours`.

    Raises:
        SettingsError: It would.
    """
    if max_hours is not None and hours > max_hours:
        raise SettingsError(f"The trainings take about {hours:.1f} hours, more than --max-hours {max_hours:g}.")


def part_of(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8).

    Raises:
        SettingsError: It is none.
    """
    first, slash, count = text.partition("/")
    if not slash or not first.isdecimal() or not count.isdecimal() or not 1 <= int(first) <= int(count):
        raise SettingsError(f"A part is given as i/n with i from 1 to n, not '{text}'.")
    return int(first), int(count)
