"""What the pre-training was worth: probes of the backbone beside the same backbone at random initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.evaluation.protocol import METRICS, Result
from mapet.report.drawing import INK, RUN_COLORS, SOFT, Picture, canvas
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "logistic": "logistic regression",
    "fewshot": "few-shot",
    "finetune": "fine-tuning",
    "segment": "segmentation",
    "tokens": "token classification",
}
_POOLS = {"mean": "mean of the patches", "cls": "class token", "both": "class token and mean"}
_RANDOM = "#c3cad2"


def protocol_title(result: Result) -> str:
    """The protocol in words, without its hash."""
    protocol = result.protocol
    name, pool = str(protocol["name"]), protocol.get("pool")
    metric = None if result.metric == "top1" else METRICS.get(result.metric, result.metric)
    return ", ".join(filter(None, (_NAMES.get(name, name), result.preset, _POOLS.get(pool, pool) if pool else None, metric)))


def sampling_interval(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on so many images (Wilson 1927)."""
    z = 1.96
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def verdict(results: Sequence[Result]) -> str:
    """One sentence with figures: the first compared result of every protocol, on the data of the first of all."""
    results = [result for result in results if result.random_value is not None] or results
    first = results[0]
    chosen = {result.protocol["name"]: result for result in reversed(results) if result.data == first.data}
    if first.random_value is None:
        found = ", ".join(f"{protocol_title(result)}: {100 * result.value:.1f} %" for result in reversed(chosen.values()))
        return f"On {first.test_images:,} test images of {first.data} ({first.classes} classes): {found}."
    clauses = [_clause(result) for result in reversed(chosen.values())]
    return (
        f"On {first.test_images:,} test images of {first.data} ({first.classes} classes), against the same backbone at random "
        f"initialisation, pre-training {', and '.join(clauses)}."
    )


def _clause(result: Result) -> str:
    name = _NAMES.get(result.protocol["name"], result.protocol["name"])
    after, before = result.value, result.random_value or 0.0
    gain = 100 * (after - before)
    shares = () if result.metric == "miou" else (after, before)
    error = 100 * math.sqrt(sum(share * (1 - share) / result.test_images for share in shares))
    verb = "moves" if abs(gain) <= 1.96 * error else "lifts" if gain > 0 else "lowers"
    doubt = ", within the sampling error of the test images" if verb == "moves" else ""
    what = METRICS.get(result.metric, result.metric) if result.metric != "top1" else "accuracy"
    return f"{verb} the {name} {what} from {100 * before:.1f} to {100 * after:.1f} % ({gain:+.1f} points{doubt})"


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
        f"{title}{f', {run.title}' if len(runs) > 1 else ''}: pre-trained {result.value:.1%}"
        + (f", random {result.random_value:.1%}" if result.random_value is not None else "")
        for (title, _, _), members in groups.items()
        for run, result in members
    ]
    sizes = {(result.train_images, result.test_images) for run in runs for result in run.results}
    counts = "; ".join(f"{train:,} labelled images to learn from, {test:,} judged" for train, test in sorted(sizes))
    return drawn.picture(
        "probes",
        f"Bars of accuracy. {'; '.join(told)}.",
        f"Top-1 accuracy, where no other figure is named, on held-out images ({counts}). Whiskers: 95 % sampling interval of the "
        "test images, not the spread over seeds. Eight hex digits name the protocol: only figures under the same ones compare.",
    )


def _draw_groups(
    axes: Axes, groups: dict[tuple[str, str, str], list[tuple[ReportedRun, Result]]], runs: Sequence[ReportedRun]
) -> None:
    several_sets = len({data for _, _, data in groups}) > 1
    y = 0.0
    for (title, digits, data), members in groups.items():
        label = axes.text(0, y, title, weight="bold", va="center", fontsize=9)
        axes.annotate(
            f"  {digits}{f'  on {Path(data).name or data}' if several_sets else ''}",
            (1, 0.5), xycoords=label, va="center", fontsize=8, color=SOFT, family="DejaVu Sans Mono", annotation_clip=False,
        )  # fmt: skip
        y += 0.62
        for run, result in members:
            who = f"{run.title}: " if len(runs) > 1 else ""
            color = RUN_COLORS[runs.index(run) % len(RUN_COLORS)]
            images = None if result.metric == "miou" else result.test_images
            _bar(axes, y, result.value, images, color, f"{who}pre-trained")
            if result.random_value is not None:
                _bar(axes, y + 0.42, result.random_value, images, _RANDOM, "random")
            y += 1.0
        y += 0.35
    axes.set(xlim=(0, 1.0), ylim=(y - 0.35, -0.45), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _bar(axes: Axes, y: float, value: float, images: int | None, color: str, label: str) -> None:
    """A bar, with its interval where it is a share of images; the text stands in it where there is room, behind it otherwise."""
    low, high = sampling_interval(value, images) if images else (value, value)
    axes.barh(y, value, height=0.38, color=color)
    if images:
        axes.errorbar(value, y, xerr=[[value - low], [high - value]], color=INK, elinewidth=0.9, capsize=2, capthick=0.9)
    text = f"{100 * value:.1f} %"
    on_bar = "white" if color in RUN_COLORS else INK
    if value > 0.55:
        axes.text(0.012, y, label, va="center", color=on_bar, fontsize=8.5)
        axes.text(low - 0.015, y, text, va="center", ha="right", color=on_bar, fontsize=8.5, weight="bold")
    else:
        axes.text(high + 0.015, y, f"{text}  {label}", va="center", fontsize=8.5)
