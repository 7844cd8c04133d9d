"""Pictures of a comparison: differences with their intervals, learning curves with seeds as bands, cost against accuracy."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mapet.compare.carry_out import rows_per_step
from mapet.compare.grid import Cell, Grid
from mapet.compare.results import ComparisonResults, Row
from mapet.report.drawing import LINE, RUN_COLORS, SOFT, Picture, canvas, short, slug
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 60  # of a learning curve
_LETTERS = 30  # in a line of a cell's title beside a figure
_DASHES, _MARKERS = ("-", "--", ":", "-."), "osD^vPX"
_LEGEND_LINE = 0.19  # inches
_TWO_COLUMNS = 34  # letters of a legend, of which two columns fit


@dataclass(frozen=True)
class _Style:
    color: str
    dash: str
    marker: str


def forest_plots(rows: Sequence[Row]) -> list[Picture]:
    """Of every protocol the differences to the baselines, with 95 % intervals."""
    protocols = dict.fromkeys(row.protocol for row in rows if row.difference is not None)
    return [_forest([row for row in rows if row.protocol == name and row.difference is not None], name) for name in protocols]


def _forest(rows: Sequence[Row], protocol: str) -> Picture:
    """A line for every row; where there are several baselines, the rows of each stand together under its name."""
    baselines = [*dict.fromkeys(row.baseline for row in rows)]
    lines: list[tuple[str, Row | None]] = []
    for baseline in baselines:
        lines += [(_wrapped(f"against {baseline}:"), None)] if len(baselines) > 1 else []
        lines += [(_wrapped(row.cell), row) for row in rows if row.baseline == baseline]
    heights = np.cumsum([0.5 + 0.5 * (1 + label.count("\n")) for label, _ in lines])
    with canvas(0.9 + 0.3 * float(heights[-1]), vectors=True) as drawn:
        axes = drawn.figure.add_subplot()
        axes.axvline(0, color=SOFT, linewidth=0.8)
        for height, (_, row) in zip(heights, lines, strict=True):
            if row is not None and (difference := row.difference) is not None:
                color = RUN_COLORS[0] if row.differs else SOFT
                axes.plot([100 * difference.low, 100 * difference.high], [height, height], color=color, linewidth=2)
                axes.plot(100 * difference.mean, height, "o", color=color, markersize=6)
        axes.set_yticks(heights, [label for label, _ in lines])
        axes.tick_params(axis="y", length=0)
        for label, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontstyle("normal" if row else "italic")
        axes.set_ylim(float(heights[-1]) + 0.6, float(heights[0]) - 0.6)
        axes.set_xlabel("points")
        _title(drawn.figure, f"{protocol}: difference to {baselines[0] if len(baselines) == 1 else 'the baseline'}")
    words = "; ".join(f"{row.cell} against {row.baseline} {100 * row.difference.mean:+.1f}" for row in rows if row.difference)
    caption = "Mean and 95 % interval over seeds and test images. Grey: no difference shown after Holm's correction."
    return drawn.picture(f"difference-{slug(protocol)}", f"Differences in points: {words}", caption)


def learning_curves(results: ComparisonResults) -> Picture | None:
    """The loss of every cell: the mean over seeds, and a band from the lowest to the highest. A panel for every kind of tokens."""
    grid = results.manifest.grid
    curves = {cell: [curve for seed in _seeds(results, cell) if len(curve := _curve(results, cell, seed))] for cell in grid.cells}
    curves = {cell: seed_curves for cell, seed_curves in curves.items() if seed_curves}
    if not curves:
        return None
    panels = [*dict.fromkeys(cell.tokenizer for cell in curves)]
    styles = _styles(grid)
    with canvas(2.3 * len(panels) + 0.6 + _legend_height(curves, grid), vectors=True) as drawn:
        for axes, tokenizer in zip(drawn.figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            for cell, seed_curves in ((cell, seed_curves) for cell, seed_curves in curves.items() if cell.tokenizer == tokenizer):
                steps, losses = _on_common_steps(seed_curves)
                style = styles[cell]
                axes.plot(steps, losses.mean(axis=0), color=style.color, linestyle=style.dash, label=cell.title(grid))
                axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=style.color, alpha=0.18, linewidth=0)
            of = "" if len(panels) == 1 else " without tokens" if tokenizer is None else f" on {Path(tokenizer or 'tokens').name}"
            axes.set_title(f"Loss{of}")
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
            axes.grid(color=LINE)
        axes.set_xlabel("optimizer steps")
        _legend(drawn.figure, [cell.title(grid) for cell in curves])
    caption = "Losses of different objectives are different quantities: they show that a training has settled, not which is better."
    return drawn.picture("learning-curves", "Loss over optimizer steps for every cell, with seeds as bands", caption)


def _on_common_steps(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) that all curves have reached, and their losses there (curves, n)."""
    steps = np.linspace(max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves), _POINTS)
    return steps, np.array([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])


@dataclass(frozen=True)
class _Point:
    cell: Cell
    seconds: float
    rows: float
    value: float


def cost_against_accuracy(results: ComparisonResults) -> list[Picture]:
    """Of every protocol, the mean figure of a cell over what its training cost, in seconds and in rows through the blocks."""
    grid = results.manifest.grid
    costs = {cell: _cost(results, cell) for cell in grid.cells if _seeds(results, cell)}
    pictures = []
    for protocol in dict.fromkeys(row.protocol for row in results.rows):
        values = {row.cell: 100 * row.mean for row in results.rows if row.protocol == protocol}
        points = [_Point(cell, *cost, values[cell.title(grid)]) for cell, cost in costs.items() if cell.title(grid) in values]
        if len(points) > 1:
            pictures.append(_scatter(protocol, points, grid))
    return pictures


def _cost(results: ComparisonResults, cell: Cell) -> tuple[float, float]:
    """Seconds of a training and rows in it, means over seeds."""
    runs = [_reported(results, cell, seed) for seed in _seeds(results, cell)]
    rows = rows_per_step(results.manifest, cell)
    return float(np.mean([run.training_seconds for run in runs])), float(np.mean([rows * run.steps for run in runs]))


def _scatter(protocol: str, points: Sequence[_Point], grid: Grid) -> Picture:
    styles, titles = _styles(grid), [point.cell.title(grid) for point in points]
    with canvas(2.7 + _legend_height([point.cell for point in points], grid), vectors=True) as drawn:
        left, right = drawn.figure.subplots(1, 2, sharey=True)
        for point, title in zip(points, titles, strict=True):
            style = styles[point.cell]
            fill = style.color if style.dash == "-" else "white"
            look = {"color": style.color, "markersize": 7, "markerfacecolor": fill, "linestyle": "", "marker": style.marker}
            left.plot(point.seconds, point.value, label=title, **look)
            right.plot(point.rows, point.value, **look)
        for axes, label in ((left, "seconds of training"), (right, "rows through the blocks")):
            axes.margins(0.12)
            axes.set_xlim(left=0)
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(lambda value, _: short(value))
            axes.locator_params(axis="x", nbins=4)
            axes.grid(color=LINE)
        left.set_ylabel("%")
        _title(drawn.figure, f"{protocol}: accuracy against cost")
        _legend(drawn.figure, titles)
    words = "; ".join(f"{title} {point.value:.1f} % in {point.seconds:.0f} s" for title, point in zip(titles, points, strict=True))
    caption = "Means over seeds. Seconds: wall time of the training loop alone. Rows: of all images, in the backbone's blocks."
    return drawn.picture(f"cost-{slug(protocol)}", f"Accuracy against cost: {words}", caption)


def _styles(grid: Grid) -> dict[Cell, _Style]:
    """A colour for every objective, or for every cell where there is one objective; dashes and marks for what else is varied."""
    others = [*dict.fromkeys(_rest(cell) for cell in grid.cells if cell.tokenizer is not None)] or [_rest(grid.cells[0])]
    styles = {}
    for number, cell in enumerate(grid.cells):
        several = len(grid.objectives) > 1
        color = grid.objectives.index(cell.objective) if several else number
        variant = others.index(_rest(cell)) if several and _rest(cell) in others else 0
        variant += color // len(RUN_COLORS)
        marker = _MARKERS[(color + variant) % len(_MARKERS)]
        styles[cell] = _Style(RUN_COLORS[color % len(RUN_COLORS)], _DASHES[variant % len(_DASHES)], marker)
    return styles


def _rest(cell: Cell) -> tuple[object, ...]:
    """What is varied besides the objective."""
    return cell.tokenizer, cell.backbone, cell.varied


def _legend(figure: Figure, titles: Sequence[str]) -> None:
    """Below the axes, where it covers nothing."""
    figure.legend(loc="outside lower left", ncols=_columns(titles))


def _legend_height(cells: Iterable[Cell], grid: Grid) -> float:
    titles = [cell.title(grid) for cell in cells]
    return _LEGEND_LINE * math.ceil(len(titles) / _columns(titles))


def _columns(titles: Sequence[str]) -> int:
    longest = max(map(len, titles))
    return 3 if longest <= 16 else 2 if longest <= _TWO_COLUMNS else 1


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(textwrap.fill(text, 58), x=0.01, ha="left", fontsize=9.5, weight="bold")


def _wrapped(title: str) -> str:
    return textwrap.fill(title, _LETTERS)


def _seeds(results: ComparisonResults, cell: Cell) -> list[int]:
    return [seed for finished_cell, seed in results.finished if finished_cell == cell]


def _curve(results: ComparisonResults, cell: Cell, seed: int) -> np.ndarray:
    """Steps and losses of a run, (entries, 2)."""
    entries = _reported(results, cell, seed).metrics
    return np.array([[entry["step"], entry["loss"]] for entry in entries]).reshape(-1, 2)


def _reported(results: ComparisonResults, cell: Cell, seed: int) -> ReportedRun:
    return ReportedRun(results.manifest.run(cell, seed), cell.title(results.manifest.grid))
