"""The curve of a figure over a number that the grid varies, such as the cutting point (MaPeT, Table 6)."""

from __future__ import annotations

from dataclasses import replace

from mapet.compare.grid import Cell
from mapet.compare.results import ComparisonResults, Row
from mapet.report.drawing import LINE, RUN_COLORS, Picture, canvas, slug


def varied_curves(results: ComparisonResults) -> list[Picture]:
    """Of every protocol the mean and standard deviation over seeds against the number; none where the grid varies anything else."""
    grid = results.manifest.grid
    if len(grid.vary) != 1 or not all(_is_number(value) for value in next(iter(grid.vary.values()))):
        return []
    protocols = dict.fromkeys(task.title for task in results.tasks if not task.is_of_tokenizers)
    curves = [(protocol, _points(results, protocol)) for protocol in protocols]
    name = next(iter(grid.vary)).rpartition(".")[2]
    return [_curve(protocol, points, name) for protocol, points in curves if any(len(line) > 1 for line in points.values())]


def _points(results: ComparisonResults, protocol: str) -> dict[str, list[tuple[float, Row]]]:
    """Of every cell without what is varied: its numbers in their order, with their rows."""
    grid, lines = results.manifest.grid, dict[Cell, list[tuple[float, Row]]]()
    rows = {row.cell: row for row in results.rows if row.protocol == protocol}
    for cell in grid.cells:
        if row := rows.get(cell.title(grid)):
            lines.setdefault(replace(cell, varied=()), []).append((float(cell.varied[0][1]), row))
    return {cell.title(grid): sorted(line, key=lambda point: point[0]) for cell, line in lines.items()}


def _curve(protocol: str, lines: dict[str, list[tuple[float, Row]]], name: str) -> Picture:
    with canvas(3.0) as drawn:
        axes = drawn.figure.add_subplot()
        for number, (title, points) in enumerate(lines.items()):
            values = [100 * row.mean for _, row in points]
            errors = [100 * (row.deviation or 0.0) for _, row in points]
            color = RUN_COLORS[number % len(RUN_COLORS)]
            axes.errorbar([x for x, _ in points], values, errors, color=color, marker="o", capsize=3, label=title)
        axes.set_xlabel(name)
        axes.set_ylabel("%")
        axes.set_title(f"{protocol} over {name}")
        axes.grid(color=LINE)
        if len(lines) > 1:
            axes.legend()
    words = "; ".join(f"{title} {x:g} {100 * row.mean:.1f} %" for title, points in lines.items() for x, row in points)
    caption = "Mean over seeds; the bars are one standard deviation."
    return drawn.picture(f"over-{slug(name)}-{slug(protocol)}", f"{protocol} over {name}: {words}", caption)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
