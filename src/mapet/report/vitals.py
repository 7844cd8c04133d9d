"""Vital signs of a run: what it was warned of, and the curves behind the warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mapet.engine.warnings import read_warnings
from mapet.errors import NotThereError
from mapet.health.rules import LARGE_UPDATE, SMALL_UPDATE
from mapet.report.drawing import RUN_COLORS, SOFT, Picture, canvas, short, slug
from mapet.report.page import text
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]

_SERIES: dict[str, tuple[str, Mapping[str, str], str]] = {
    "gain": (
        "Bits a token",
        {"bits_gained": "over token frequencies", "bits_from_image": "due to the image"},
        "Over token frequencies: how far the training loss lies below their entropy. Due to the image: how much better the "
        "predictions for a few fixed images fit their own tokens than those of other images at the same positions; it stays at 0 "
        "where tokens and images do not belong together.",
    ),
    "effective-rank": (
        "Effective rank of the features",
        {"effective_rank/patches": "patches", "effective_rank/images": "means of images"},
        "Exponentiated entropy of the singular values of the features of a few fixed images. A fall towards 1 is a collapse.",
    ),
    "updates": (
        "Relative size of one step",
        {f"update/{part}": part.replace("_", " ") for part in ("patch_embed", "embeddings", "blocks", "norm", "head")},
        "Change of the weights in one optimizer step, relative to their size, by part. It follows the learning rate; a part that "
        "gets no gradient is missing.",
    ),
    "online-probe": (
        "Online probe, top-1 (%)",
        {"online/knn": "k-NN", "online/linear": "linear"},
        "On a held-out part of the training images; the labels are seen by the probes only.",
    ),
}


def warning_texts(run: ReportedRun) -> str:
    """The warnings as paragraphs, in their order; resolved ones are marked."""
    lines = read_warnings(run.run)
    withdrawn = {line["name"]: line["step"] for line in lines if line["message"] is None}
    parts = []
    for line in lines:
        if line["message"] is not None:
            later = f" (No longer since step {withdrawn[line['name']]}.)" if line["name"] in withdrawn else ""
            parts.append(text(f"Step {line['step']}: {line['message']}{later}", "verdict" if not later else ""))
    return "".join(parts) or text("No warnings.")


def vital_figures(run: ReportedRun) -> list[Picture]:
    """Curves of all vital signs that the run has logged.

    Raises:
        NotThereError: It has logged none.
    """
    pictures = [_picture(run, name) for name in _SERIES if _lines(run, name)]
    pictures += _by_rank(run)
    if not pictures:
        raise NotThereError(f"{run.run.metrics} has no vital signs yet; the first come after 10 steps, and after 100.")
    return pictures


def _lines(run: ReportedRun, name: str) -> dict[str, Points]:
    """Points of every curve that has any; a value of 0 has no place on a logarithmic axis."""
    curves = {}
    for key, label in _SERIES[name][1].items():
        points = [(entry["step"], entry[key]) for entry in run.metrics if key in entry and (name != "updates" or entry[key] > 0)]
        if points:
            curves[label] = points
    return curves


def _picture(run: ReportedRun, name: str) -> Picture:
    title, _, caption = _SERIES[name]
    scale = 100 if name == "online-probe" else 1
    parts = []
    with canvas(2.6) as drawn:
        axes = drawn.figure.subplots()
        for color, (label, points) in zip(RUN_COLORS, _lines(run, name).items(), strict=False):
            steps, values = [step for step, _ in points], [scale * value for _, value in points]
            axes.plot(steps, values, color=color, label=label, marker="o" if len(points) < 15 else None, markersize=3)
            parts.append(f"{label} {values[0]:.3g} to {values[-1]:.3g}")
        if name == "updates":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            for border in (LARGE_UPDATE, SMALL_UPDATE):
                if axes.get_ylim()[0] < border < axes.get_ylim()[1]:
                    axes.axhline(border, color=SOFT, linestyle=":", linewidth=1.1)
        elif name == "gain":
            axes.axhline(0, color=SOFT, linewidth=0.8)
        else:
            axes.set_ylim(bottom=0)
        _finish(axes, title, "optimizer step")
        drawn.figure.legend(loc="outside lower left", ncols=3)
    return drawn.picture(f"vital-{name}-{slug(run.title)}", f"{title}: {'; '.join(parts)}.", caption)


def _by_rank(run: ReportedRun) -> list[Picture]:
    """Accuracy by rank in the permutation at the first, the middle and the last look."""
    evaluations = [entry for entry in run.metrics if "accuracy_by_rank/1" in entry]
    if not evaluations:
        return []
    entry_of_step = {entry["step"]: entry for entry in (evaluations[0], evaluations[len(evaluations) // 2], evaluations[-1])}
    buckets = sorted((int(key.rpartition("/")[2]), key) for key in evaluations[-1] if key.startswith("accuracy_by_rank/"))
    with canvas(2.6) as drawn:
        axes = drawn.figure.subplots()
        for color, (step, entry) in zip((SOFT, RUN_COLORS[1], RUN_COLORS[0]), entry_of_step.items(), strict=False):
            values = [100 * entry[key] for _, key in buckets]
            axes.plot([number for number, _ in buckets], values, color=color, marker="o", markersize=3, label=f"step {int(step):,}")
        axes.set_ylim(bottom=0)
        _finish(axes, "Accuracy by rank in the permutation (%)", "part of the targets, first to last")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        drawn.figure.legend(loc="outside lower left", ncols=3)
    first, last = (100 * evaluations[-1][buckets[index][1]] for index in (0, -1))
    return [
        drawn.picture(
            f"vital-rank-{slug(run.title)}",
            f"Accuracy by rank: {first:.1f} % of the first targets, {last:.1f} % of the last.",
            "Of a few fixed images. Later targets see the contents of earlier ones: a model that uses them is better at the end.",
        )
    ]


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(below)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
