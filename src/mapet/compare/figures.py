"""Pictures of a comparison: differences with their intervals, learning curves with seeds as bands, cost against accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mapet.compare.grid import Cell
from mapet.compare.results import ComparisonResults, Row
from mapet.report.drawing import LINE, RUN_COLORS, SOFT, Picture, canvas, slug
from mapet.report.reading import ReportedRun

_POINTS = 60  # of a learning curve


def forest_plots(rows: Sequence[Row]) -> list[Picture]:
    """Of every protocol the differences to the baselines, with 95 % intervals."""
    protocols = dict.fromkeys(row.protocol for row in rows if row.difference is not None)
    return [_forest([row for row in rows if row.protocol == name], name) for name in protocols]


def _forest(rows: Sequence[Row], protocol: str) -> Picture:
    baselines = [*dict.fromkeys(row.baseline for row in rows if row.difference is not None)]
    baseline = baselines[0] if len(baselines) == 1 else "the baseline"
    shown = [(row.cell, found, row.differs) for row in rows if (found := row.difference) is not None]
    with canvas(0.9 + 0.32 * len(shown)) as drawn:
        axes = drawn.figure.add_subplot()
        axes.axvline(0, color=SOFT, linewidth=0.8)
        for height, (_, found, differs) in enumerate(reversed(shown)):
            color = RUN_COLORS[0] if differs else SOFT
            axes.plot([100 * found.low, 100 * found.high], [height, height], color=color, linewidth=2)
            axes.plot(100 * found.mean, height, "o", color=color, markersize=6)
        axes.set_yticks(range(len(shown)), [cell for cell, _, _ in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("points")
        axes.set_title(f"{protocol}: difference to {baseline}")
    words = "; ".join(f"{cell} {100 * found.mean:+.1f}" for cell, found, _ in shown)
    caption = "Mean and 95 % interval over seeds and test images. Grey: no difference shown after Holm's correction."
    return drawn.picture(f"difference-{slug(protocol)}", f"Differences to {baseline} in points: {words}", caption)


def learning_curves(results: ComparisonResults) -> Picture | None:
    """The loss of every cell: the mean over seeds, and a band from the lowest to the highest."""
    grid = results.manifest.grid
    curves = {cell: [_curve(results, cell, seed) for other, seed in results.finished if other == cell] for cell in grid.cells}
    with canvas(3.2) as drawn:
        axes, drawn_any = drawn.figure.add_subplot(), False
        for color, (cell, own) in zip(_colors(len(curves)), curves.items(), strict=True):
            known = [curve for curve in own if len(curve)]
            if not known:
                continue
            last = min(curve[-1, 0] for curve in known)
            steps = np.linspace(max(curve[0, 0] for curve in known), last, _POINTS)
            losses = np.array([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in known])
            axes.plot(steps, losses.mean(axis=0), color=color, label=cell.title(grid))
            axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.18, linewidth=0)
            drawn_any = True
        axes.set_xlabel("optimizer steps")
        axes.set_title("Loss")
        axes.grid(color=LINE)
        if drawn_any:
            axes.legend()
    if not drawn_any:
        return None
    caption = "Losses of different objectives are different quantities: they show that a training has settled, not which is better."
    return drawn.picture("learning-curves", "Loss over optimizer steps for every cell, with seeds as bands", caption)


def cost_against_accuracy(results: ComparisonResults) -> list[Picture]:
    """Of every protocol, the mean figure of a cell over the mean seconds of its training."""
    grid = results.manifest.grid
    seconds = {
        cell: [_reported(results, cell, seed).training_seconds for own, seed in results.finished if own == cell]
        for cell in grid.cells
    }
    pictures = []
    for protocol in dict.fromkeys(row.protocol for row in results.rows):
        points = [
            (cell.title(grid), float(np.mean(seconds[cell])), 100 * row.mean)
            for cell in grid.cells
            for row in results.rows
            if row.protocol == protocol and row.cell == cell.title(grid) and seconds[cell]
        ]
        if len(points) > 1:
            pictures.append(_scatter(protocol, points))
    return pictures


def _scatter(protocol: str, points: Sequence[tuple[str, float, float]]) -> Picture:
    with canvas(3.0) as drawn:
        axes = drawn.figure.add_subplot()
        for color, (title, seconds, value) in zip(_colors(len(points)), points, strict=True):
            axes.plot(seconds, value, "o", color=color, markersize=8, label=title)
        axes.set_xlim(left=0)
        axes.margins(0.15)
        axes.set_xlabel("seconds of training, mean over seeds")
        axes.set_ylabel("%")
        axes.set_title(f"{protocol}: accuracy against cost")
        axes.grid(color=LINE)
        axes.legend()
    words = "; ".join(f"{title} {value:.1f} % in {seconds:.0f} s" for title, seconds, value in points)
    return drawn.picture(f"cost-{slug(protocol)}", f"Accuracy against cost: {words}", "Wall time of the training loop alone.")


def _curve(results: ComparisonResults, cell: Cell, seed: int) -> np.ndarray:
    """Steps and losses of a run, (entries, 2)."""
    entries = _reported(results, cell, seed).metrics
    return np.array([[entry["step"], entry["loss"]] for entry in entries]).reshape(-1, 2)


def _reported(results: ComparisonResults, cell: Cell, seed: int) -> ReportedRun:
    return ReportedRun(results.manifest.run(cell, seed), cell.title(results.manifest.grid))


def _colors(count: int) -> list[str]:
    return [RUN_COLORS[number % len(RUN_COLORS)] for number in range(count)]
