"""The page of a comparison: one file, with a table that sorts, pictures, and facts of every run."""

from __future__ import annotations

from collections.abc import Sequence

from mapet.compare.figures import cost_against_accuracy, forest_plots, learning_curves
from mapet.compare.grid import Cell, described
from mapet.compare.results import ComparisonResults
from mapet.compare.table import HEADINGS, PrintedTable, cells_of, sentences
from mapet.compare.tuning import Tuning
from mapet.compare.varied import varied_curves
from mapet.report import page
from mapet.report.drawing import Picture
from mapet.report.listing import state_of
from mapet.report.reading import ReportedRun
from mapet.report.scorecard import environment_rows
from mapet.report.sorting import SORTING
from mapet.runtime.progress import format_seconds
from mapet.runtime.run_directory import describe_environment

_HOW = (
    "Values are means over seeds, ± their standard deviation. Differences are paired: seed by seed, on the same test images. The "
    "95 % interval counts both seeds and test images (two-way analysis of variance, Satterthwaite's degrees of freedom). p-values "
    "are adjusted by Holm's method for all {count} differences of this page. All runs of a seed share the initial weights, the "
    "order of the images and their jitter."
)
_HOW_TUNED = (
    "Every cell was trained once with each value, with a seed of its own and as many steps as its runs. The value was chosen by "
    "the first protocol on a fifth of the training images; the test images had no part in it."
)


def comparison_page(
    results: ComparisonResults,
    failed: Sequence[str] = (),
    tuning: Tuning | None = None,
    printed: PrintedTable | None = None,
    tokenizers: tuple[str, list[Picture]] = ("", []),
) -> tuple[str, list[Picture]]:
    """The page, and its pictures.

    Args:
        results: Of the comparison.
        failed: A sentence for every run that failed.
        printed: Figures of a paper that stand beside ours.
        tuning: What the settings of every cell were chosen by.
        tokenizers: The content of their section, and its pictures.
    """
    rows, grid = results.rows, results.manifest.grid
    baseline = grid.objectives[0] if len(grid.objectives) > 1 else (grid.cells or grid.token_cells)[0].title(grid)
    title = f"Comparison on {results.manifest.data}"
    curves = learning_curves(results)
    groups = [
        [*varied_curves(results), *forest_plots(rows)],
        [curves] if curves else [],
        cost_against_accuracy(results),
    ]
    words = [page.text(sentence) for sentence in sentences(sorted(rows, key=lambda row: not row.differs))]
    tokens, galleries = tokenizers
    groups.append(galleries)
    unfinished = [page.left_out(f"{run} (not finished).") for run in results.missing] + [page.left_out(text) for text in failed]
    tested = sum(row.difference is not None for row in rows)
    content = [
        page.heading(title, 1),
        page.text(f"Baseline: {baseline}. {len(results.finished)} of {len(grid.cells) * grid.seeds} runs are finished."),
        page.text(_hours(results)) if grid.cells else "",
        *unfinished,
        page.section("What differs", page.figures(groups[0]), *words) if words else "",
        page.section("All figures", page.table(HEADINGS, map(cells_of, rows)), page.text(_HOW.format(count=tested))),
        _printed(printed) if printed else "",
        page.section("Settings that were chosen", page.table(_TUNING_HEADINGS, _trials(tuning)), page.text(_HOW_TUNED))
        if tuning and tuning.trials
        else "",
        page.section("Training", page.figures([*groups[2], *groups[1]])) if grid.cells else "",
        page.section("Tokenizers", tokens) if tokens else "",
        page.section("Runs", page.table(_RUN_HEADINGS, _runs(results))) if grid.cells else "",
        page.section("How this page was made", page.table(["", "value"], environment_rows(describe_environment()))),
        SORTING,
    ]
    return page.page(title, content), [picture for group in groups for picture in group]


_TUNING_HEADINGS = ("", "setting", "held-out figure (%)", "")
_RUN_HEADINGS = (
    "run",
    "seed",
    "state",
    "steps",
    "training",
    "images/s",
    "last loss",
    "processor or GPU",
    "mapet",
    "torch",
    "commit",
)


def _printed(table: PrintedTable) -> str:
    """Figures of a paper, marked as such."""
    return page.section(
        f"Printed in the paper ({table.source})",
        page.text(f"Not measured here: {table.caption}. {table.expect}"),
        page.table(table.columns, table.rows),
    )


def _trials(tuning: Tuning) -> list[list[str]]:
    """Every trial with its figure on the held-out training images."""
    rows, grid = [], tuning.manifest.grid
    for cell, trial in tuning.trials:
        score = tuning.scores(cell).get(trial)
        value = "not finished" if score is None else f"{100 * score:.1f}" if score else "diverged"
        is_chosen = tuning.manifest.chosen_trials.get(cell) == trial
        rows.append([cell.title(grid), described(trial.varied[len(cell.varied) :]), value, "chosen" if is_chosen else ""])
    return rows


def _hours(results: ComparisonResults) -> str:
    """The time of all trainings and evaluations of the comparison."""
    training = sum(_reported(results, cell, seed).training_seconds for cell, seed in _begun(results))
    evaluation = sum(result.seconds for cell, seed in _begun(results) for result in _reported(results, cell, seed).results)
    return f"Training took {format_seconds(training)} over all runs, and evaluation {format_seconds(evaluation)}."


def _begun(results: ComparisonResults) -> list[tuple[Cell, int]]:
    """The runs of the grid that have a folder."""
    manifest, grid = results.manifest, results.manifest.grid
    every = [(cell, seed) for cell in grid.cells for seed in range(grid.seeds)]
    return [(cell, seed) for cell, seed in every if manifest.is_tuned(cell) and manifest.run(cell, seed).config.is_file()]


def _reported(results: ComparisonResults, cell: Cell, seed: int) -> ReportedRun:
    return ReportedRun(results.manifest.run(cell, seed), cell.title(results.manifest.grid))


def _runs(results: ComparisonResults) -> list[list[str]]:
    """The facts of every run that was begun."""
    return [_facts(_reported(results, cell, seed), seed, (cell, seed) in results.finished) for cell, seed in _begun(results)]


def _facts(run: ReportedRun, seed: int, is_finished: bool) -> list[str]:
    environment = run.environments[-1] if run.environments else {}
    seconds = run.training_seconds
    rate = f"{run.images_seen / seconds:.0f}" if seconds else ""
    loss = f"{run.metrics[-1]['loss']:.3f}" if run.metrics else ""
    hardware = ", ".join(environment.get("gpus") or []) or str(environment.get("processor") or "")
    packages, commit = environment.get("packages") or {}, str(environment.get("commit") or "")
    versions = [str(packages.get(name) or "") for name in ("mapet", "torch")]
    trained = state_of(run)
    state = "not evaluated" if trained == "finished" and not is_finished else trained
    return [run.title, str(seed), state, f"{run.steps:,}", format_seconds(seconds), rate, loss, hardware, *versions, commit]
