"""Differences between several runs by the same protocol on the same test images, paired image by image."""

from __future__ import annotations

from collections.abc import Sequence

from mapet.errors import CheckpointError
from mapet.evaluation.intervals import describe, is_distinguishable, paired_interval
from mapet.evaluation.protocol import METRICS, Result
from mapet.report import page
from mapet.report.probes import protocol_name, protocol_words
from mapet.report.reading import ReportedRun


def comparisons(runs: Sequence[ReportedRun]) -> list[str]:
    """One sentence for every protocol and every run behind the first: by how much it differs from the first, with the interval."""
    sentences = []
    for first in runs[0].results if len(runs) > 1 else []:
        for run in runs[1:]:
            same = [other for other in run.results if (other.protocol_hash, other.data) == (first.protocol_hash, first.data)]
            sentences += [f"{run.title} against {runs[0].title}, {_compared(runs[0], first, run, other)}." for other in same]
    return sentences


def results_table(runs: Sequence[ReportedRun]) -> str:
    """Many runs: a row each, a column for every protocol on a data set, with the difference to the first run that has a figure."""
    measured: dict[tuple[str, str], list[tuple[ReportedRun, Result]]] = {}
    for run in runs:
        for result in run.results:
            measured.setdefault((result.protocol_hash, result.data), []).append((run, result))
    if not measured:
        return page.text(f"None of the {len(runs)} runs is evaluated yet. `mapet evaluate knn,linear RUN` measures one.")
    columns, several = ["run"], len({data for _, data in measured}) > 1
    cells = {run.title: [run.title] for run in runs}
    for (_, data), pairs in measured.items():
        columns.append(_words(pairs[0][1]) + (f", {data}" if several else ""))
        of_run = dict(pairs)
        for run in runs:
            cells[run.title].append(_cell(pairs[0], run, of_run[run]) if run in of_run else "not measured")
    return page.table(columns, list(cells.values())) + page.text(
        "In %. In brackets: the difference to the first of the column in points and its 95 % interval, paired over the same test "
        "images; * where it does not hold 0. The intervals do not count that several runs are compared; `mapet compare` does."
    )


def _cell(reference: tuple[ReportedRun, Result], run: ReportedRun, result: Result) -> str:
    first_run, first = reference
    value = f"{100 * result.value:.1f}"
    if run is first_run:
        return value
    difference = f"{100 * (result.value - first.value):+.1f}"
    try:
        interval = paired_interval(first_run.outcomes_of(first), run.outcomes_of(result), first.metric)
    except CheckpointError:
        interval = None
    if interval is None:
        return f"{value} ({difference})"
    low, high = (100 * bound for bound in interval)
    return f"{value} ({difference}: {low:.1f} to {high:.1f}){'*' if is_distinguishable(interval) else ''}"


def _words(result: Result) -> str:
    return ", ".join(filter(None, (protocol_name(result), protocol_words(result), METRICS.get(result.metric, result.metric))))


def _compared(run: ReportedRun, first: Result, other_run: ReportedRun, other: Result) -> str:
    words, difference = _words(first), other.value - first.value
    try:
        interval = paired_interval(run.outcomes_of(first), other_run.outcomes_of(other), first.metric)
    except CheckpointError:
        return f"{words}: {describe(difference, None)} (no interval: outcomes of single images are not kept for both)"
    return f"{words}: {describe(difference, interval)}"
