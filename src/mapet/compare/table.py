"""The table of a comparison as Markdown, LaTeX and CSV, and its sentences."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from mapet.compare.results import Row
from mapet.compare.statistics import Difference
from mapet.evaluation.protocol import METRICS


@dataclass(frozen=True)
class PrintedTable:
    """What a paper printed, to stand beside our figures.

    Args:
        caption: Data, model, figure and unit.
        columns: Headings.
        rows: As text.
        source: The paper.
        expect: What the printed figures show, in words.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    source: str
    expect: str


HEADINGS = ("", "figure", "value (%)", "seeds", "difference (points)", "to", "adjusted p", "")
_COLUMNS = (
    *("cell", "tuned", "protocol", "metric", "mean", "deviation", "values"),
    *("difference", "low", "high", "baseline", "p_adjusted"),
)


def cells_of(row: Row) -> list[str]:
    """What stands in a row, as text."""
    value = f"{100 * row.mean:.1f}" + ("" if row.deviation is None else f" ± {100 * row.deviation:.1f}")
    figure = f"{row.protocol} {METRICS.get(row.metric, row.metric)}"
    cell = f"{row.cell} ({row.tuned})" if row.tuned else row.cell
    return [cell, figure, value, str(len(row.values)), *_difference(row)]


def markdown(rows: Sequence[Row]) -> str:
    """A table of Markdown."""
    lines = [_line(HEADINGS), "|" + "---|" * len(HEADINGS)]
    return "\n".join([*lines, *(_line(cells_of(row)) for row in rows)]) + "\n"


def latex(rows: Sequence[Row]) -> str:
    """A tabular of LaTeX with booktabs' rules."""
    body = [" & ".join(map(_escaped, cells_of(row))) + r" \\" for row in rows]
    head = " & ".join(map(_escaped, HEADINGS)) + r" \\"
    return "\n".join([r"\begin{tabular}{llrrrlrl}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(rows: Sequence[Row]) -> str:
    """One line a row, with every seed's figure; shares, not per cent."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        difference = row.difference
        interval = [difference.mean, difference.low, difference.high] if difference else ["", "", ""]
        values = " ".join(f"{seed}:{value:.6f}" for seed, value in sorted(row.values.items()))
        figures = [row.mean, row.deviation, values, *interval]
        writer.writerow([row.cell, row.tuned, row.protocol, row.metric, *figures, row.baseline, row.p])
    return buffer.getvalue()


def sentences(rows: Sequence[Row]) -> list[str]:
    """What every difference means, in words."""
    return [_sentence(row, row.difference) for row in rows if row.difference is not None]


def _sentence(row: Row, difference: Difference) -> str:
    figure = f"By {row.protocol}, {row.cell}"
    interval = f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    only = "; one seed: the interval counts the test images only" if difference.seeds == 1 else _fewer_seeds(row, difference)
    if not row.differs:
        return f"{figure}: no difference to {row.baseline} is shown ({100 * difference.mean:+.1f} points, {interval}{only})."
    way = "better" if difference.mean > 0 else "worse"
    return f"{figure} is {way} than {row.baseline} by {100 * abs(difference.mean):.1f} points ({interval}{only})."


def _difference(row: Row) -> list[str]:
    difference = row.difference
    if difference is None:
        return ["", row.baseline, "", ""]
    interval = (
        f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]{_fewer_seeds(row, difference)}"
    )
    p = "< 0.001" if (row.p or 0) < 0.001 else f"{row.p:.3f}"
    return [interval, row.baseline, p, "" if row.differs else "no difference shown"]


def _fewer_seeds(row: Row, difference: Difference) -> str:
    """That the baseline lacks seeds of this cell, so that the difference is not that of the two means."""
    return f"; over the {difference.seeds} seeds of both" if difference.seeds < len(row.values) else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _escaped(text: str) -> str:
    for character in r"&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$").replace("<", "$<$")
