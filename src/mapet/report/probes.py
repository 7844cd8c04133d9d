"""What the pre-training was worth: probes of the backbone beside the same backbone at random initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mapet.evaluation.protocol import Result
from mapet.report.drawing import INK, RUN_COLORS, SOFT, Picture, canvas
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"knn": "k-NN", "linear": "linear probe"}
_POOLS = {"mean": "mean of the patches", "cls": "class token", "both": "class token and mean"}
_RANDOM = "#c3cad2"


def protocol_title(result: Result) -> str:
    """The protocol in words, without its hash."""
    protocol = result.protocol
    name, pool = str(protocol["name"]), str(protocol["pool"])
    preset = f", {protocol['preset']}" if protocol.get("preset") else ""
    return f"{_NAMES.get(name, name)}{preset}, {_POOLS.get(pool, pool)}"


def sampling_interval(top1: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on so many images (Wilson 1927)."""
    z = 1.96
    centre = (top1 + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(top1 * (1 - top1) / images + z**2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def verdict(results: Sequence[Result]) -> str:
    """One sentence with figures: the first result of every protocol, on the data of the first of all."""
    first = results[0]
    chosen = {result.protocol["name"]: result for result in reversed(results) if result.data == first.data}
    clauses = [_clause(result) for result in reversed(chosen.values())]
    return (
        f"On {first.test_images:,} test images of {first.data} ({first.classes} classes), against the same backbone at random "
        f"initialisation, pre-training {', and '.join(clauses)}."
    )


def _clause(result: Result) -> str:
    name = _NAMES.get(result.protocol["name"], result.protocol["name"])
    gain = 100 * (result.top1 - result.random_top1)
    error = 100 * math.sqrt(sum(share * (1 - share) / result.test_images for share in (result.top1, result.random_top1)))
    verb = "moves" if abs(gain) <= 1.96 * error else "lifts" if gain > 0 else "lowers"
    doubt = ", within the sampling error of the test images" if verb == "moves" else ""
    change = f"from {100 * result.random_top1:.1f} to {100 * result.top1:.1f} % ({gain:+.1f} points{doubt})"
    return f"{verb} the {name} accuracy {change}"


def probe_bars(runs: Sequence[ReportedRun]) -> Picture:
    """One group of bars for every protocol and data set; in it, a pair for every run."""
    groups: dict[tuple[str, str, str], list[tuple[ReportedRun, Result]]] = {}
    for run in runs:
        for result in run.results:
            groups.setdefault((protocol_title(result), result.protocol_hash, result.data), []).append((run, result))
    pairs = sum(map(len, groups.values()))
    with canvas(0.75 + 0.42 * len(groups) + 0.46 * pairs) as drawn:
        axes = drawn.figure.subplots()
        _draw_groups(axes, groups, runs)
    told = [
        f"{title}{f', {run.title}' if len(runs) > 1 else ''}: pre-trained {result.top1:.1%}, random {result.random_top1:.1%}"
        for (title, _, _), members in groups.items()
        for run, result in members
    ]
    sizes = {(result.train_images, result.test_images) for run in runs for result in run.results}
    counts = "; ".join(f"{train:,} labelled images to learn from, {test:,} judged" for train, test in sorted(sizes))
    return drawn.picture(
        "probes",
        f"Bars of top-1 accuracy. {'; '.join(told)}.",
        f"Top-1 accuracy on held-out images ({counts}). Whiskers: 95 % sampling interval of the test images, not the spread over "
        "seeds. Eight hex digits name the protocol: only figures under the same ones are comparable.",
    )


def _draw_groups(
    axes: Axes, groups: dict[tuple[str, str, str], list[tuple[ReportedRun, Result]]], runs: Sequence[ReportedRun]
) -> None:
    several_sets = len({data for _, _, data in groups}) > 1
    y = 0.0
    for (title, digits, data), members in groups.items():
        label = axes.text(0, y, title, weight="bold", va="center", fontsize=9)
        axes.annotate(
            f"  {digits}{f'  on {data}' if several_sets else ''}",
            (1, 0.5), xycoords=label, va="center", fontsize=8, color=SOFT, family="DejaVu Sans Mono", annotation_clip=False,
        )  # fmt: skip
        y += 0.62
        for run, result in members:
            who = f"{run.title}: " if len(runs) > 1 else ""
            color = RUN_COLORS[runs.index(run) % len(RUN_COLORS)]
            _bar(axes, y, result.top1, result.test_images, color, f"{who}pre-trained")
            _bar(axes, y + 0.42, result.random_top1, result.test_images, _RANDOM, "random")
            y += 1.0
        y += 0.35
    axes.set(xlim=(0, 1.0), ylim=(y - 0.35, -0.45), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _bar(axes: Axes, y: float, top1: float, images: int, color: str, label: str) -> None:
    """A bar with its interval; the text stands in it where there is room, behind it otherwise."""
    low, high = sampling_interval(top1, images)
    axes.barh(y, top1, height=0.38, color=color)
    axes.errorbar(top1, y, xerr=[[top1 - low], [high - top1]], color=INK, elinewidth=0.9, capsize=2, capthick=0.9)
    value = f"{100 * top1:.1f} %"
    on_bar = "white" if color in RUN_COLORS else INK
    if top1 > 0.55:
        axes.text(0.012, y, label, va="center", color=on_bar, fontsize=8.5)
        axes.text(low - 0.015, y, value, va="center", ha="right", color=on_bar, fontsize=8.5, weight="bold")
    else:
        axes.text(high + 0.015, y, f"{value}  {label}", va="center", fontsize=8.5)
