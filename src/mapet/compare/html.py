"""The page of a comparison: one file, with a table that sorts, pictures, and facts of every run."""

from __future__ import annotations

from collections.abc import Sequence

from mapet.compare.figures import cost_against_accuracy, forest_plots, learning_curves
from mapet.compare.grid import described
from mapet.compare.results import ComparisonResults
from mapet.compare.table import HEADINGS, cells_of, sentences
from mapet.compare.tuning import Tuning
from mapet.report import page
from mapet.report.drawing import Picture
from mapet.report.reading import ReportedRun
from mapet.runtime.progress import format_seconds

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
# Sorts a table by the column whose head is pressed: numbers by their value, everything else as text.
_SCRIPT = """<script>
document.querySelectorAll("table").forEach(table => table.querySelectorAll("thead th").forEach((head, column) => {
  head.tabIndex = 0; head.style.cursor = "pointer"; head.title = "Sort by this column";
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => { const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/[<+,]/g, ""));
      return isNaN(number) ? text : number; };
    const rows = [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
      return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)); });
    (down ? rows.reverse() : rows).forEach(row => body.appendChild(row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}));
</script>"""


def comparison_page(
    results: ComparisonResults, failed: Sequence[str] = (), tuning: Tuning | None = None
) -> tuple[str, list[Picture]]:
    """The page, and its pictures.

    Args:
        results: Of the comparison.
        failed: A sentence for every run that failed.
        tuning: What the settings of every cell were chosen by.
    """
    rows, grid = results.rows, results.manifest.grid
    baseline = grid.objectives[0] if len(grid.objectives) > 1 else (grid.cells or grid.token_cells)[0].title(grid)
    title = f"Comparison on {results.manifest.data}"
    curves = learning_curves(results)
    groups = [forest_plots(rows), [curves] if curves else [], cost_against_accuracy(results)]
    words = [page.text(sentence) for sentence in sentences(rows)]
    unfinished = [page.left_out(f"{run} (not finished).") for run in results.missing] + [page.left_out(text) for text in failed]
    tested = sum(row.difference is not None for row in rows)
    content = [
        page.heading(title, 1),
        page.text(f"Baseline: {baseline}. {len(results.finished)} of {len(grid.cells) * grid.seeds} runs are finished."),
        *unfinished,
        page.section("What differs", *words, page.figures(groups[0])) if words else "",
        page.section("All figures", page.table(HEADINGS, map(cells_of, rows)), page.text(_HOW.format(count=tested))),
        page.section("Settings that were chosen", page.table(_TUNING_HEADINGS, _trials(tuning)), page.text(_HOW_TUNED))
        if tuning and tuning.trials
        else "",
        page.section("Training", page.figures([*groups[1], *groups[2]])) if grid.cells else "",
        page.section("Runs", page.table(_RUN_HEADINGS, _runs(results))) if grid.cells else "",
        _SCRIPT,
    ]
    return page.page(title, content), [picture for group in groups for picture in group]


_TUNING_HEADINGS = ("", "setting", "held-out figure (%)", "")
_RUN_HEADINGS = ("run", "seed", "steps", "training", "images/s", "last loss", "processor or GPU", "mapet", "torch", "commit")


def _trials(tuning: Tuning) -> list[list[str]]:
    """Every trial with its figure on the held-out training images."""
    rows, grid = [], tuning.manifest.grid
    for cell, trial in tuning.trials:
        score = tuning.scores(cell).get(trial)
        value = "not finished" if score is None else f"{100 * score:.1f}" if score else "diverged"
        is_chosen = tuning.manifest.chosen.get(cell) == trial
        rows.append([cell.title(grid), described(trial.varied[len(cell.varied) :]), value, "chosen" if is_chosen else ""])
    return rows


def _runs(results: ComparisonResults) -> list[list[str]]:
    """The facts of every finished run."""
    return [
        _facts(ReportedRun(results.manifest.run(cell, seed), cell.title(results.manifest.grid)), seed)
        for cell, seed in results.finished
    ]


def _facts(run: ReportedRun, seed: int) -> list[str]:
    environment = run.environments[-1] if run.environments else {}
    seconds = run.training_seconds
    rate = f"{run.images_seen / seconds:.0f}" if seconds else ""
    loss = f"{run.metrics[-1]['loss']:.3f}" if run.metrics else ""
    hardware = ", ".join(environment.get("gpus") or []) or str(environment.get("processor") or "")
    packages, commit = environment.get("packages") or {}, str(environment.get("commit") or "")
    versions = [str(packages.get(name) or "") for name in ("mapet", "torch")]
    return [run.title, str(seed), f"{run.steps:,}", format_seconds(seconds), rate, loss, hardware, *versions, commit]
