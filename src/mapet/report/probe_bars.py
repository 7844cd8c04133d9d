"""What the pre-training was worth, drawn: bars for every protocol, by data set, beside what is had for nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.evaluation.intervals import describe as describe_gain
from mapet.evaluation.protocol import Result
from mapet.report.drawing import INK, LINE, RUN_COLORS, SOFT, Picture, canvas
from mapet.report.probes import frequent_class, protocol_name, protocol_words
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

_EVALUATED = {"tokens": "tokenizer", "classify": "classifier"}
_RANDOM, _FREQUENT = "#c3cad2", "white"
# Upper end of the axis and its ticks' distance, in percent: the first that holds all bars.
_SCALES = ((20, 5), (40, 10), (60, 20), (100, 25))
_DATA, _TITLE, _BAR, _BETWEEN = 0.46, 0.23, 0.185, 0.13  # inches of a heading, of a title, of a bar, and between protocols
_LONGEST_DATA, _LONGEST_LABEL, _LONGEST_TITLE = 40, 20, 66


@dataclass(frozen=True)
class _Bar:
    """One bar: a share, what it is of, how many images it was measured on (None: not a share of images), and its gain in words."""

    label: str
    value: float
    color: str
    images: int | None
    gain: str = ""


@dataclass(frozen=True)
class _Group:
    """The bars of one protocol on one data set."""

    name: str
    words: str
    digits: str
    bars: list[_Bar] = field(default_factory=list)


def sampling_interval(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on so many images (Wilson 1927)."""
    z = 1.96
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def probe_bars(runs: Sequence[ReportedRun]) -> Picture:
    """A part for every data set; in it, one group of bars for every protocol; in it, the bars of every run."""
    run_results = [(run, result) for run in runs for result in run.results]
    parts: dict[str, dict[tuple[str, str], _Group]] = {}
    for run, result in run_results:
        key = (protocol_name(result) + protocol_words(result), result.protocol_hash)
        new = _Group(protocol_name(result), protocol_words(result), result.protocol_hash)
        group = parts.setdefault(result.data, {}).setdefault(key, new)
        group.bars.extend(_bars_of(run, result, runs))
    with canvas(_height(parts)) as drawn:
        _draw(drawn.figure, parts, {result.data: result for _, result in reversed(run_results)})
    bars_in_words = [
        f"{group.name} {group.words} on {data}: "
        + ", ".join(f"{bar.label} {bar.value:.1%}{bar.gain and f' ({bar.gain})'}" for bar in group.bars)
        for data, groups in parts.items()
        for group in groups.values()
    ]
    return drawn.picture(
        "probes", f"Bars of accuracy. {'; '.join(bars_in_words)}.", _caption([result for _, result in run_results])
    )


def _caption(results: Sequence[Result]) -> str:
    of_tokens = any(result.protocol["name"] == "tokens" for result in results)
    tokenizer = "Token classification uses visual tokens only and evaluates the tokenizer. " if of_tokens else ""
    has_frequent_class = any(frequent_class(result) is not None for result in results)
    frequent = "White bars: always answering the most frequent class, the least to beat. " if has_frequent_class else ""
    return (
        f"Top-1 accuracy, where no other figure is named, on held-out images. {tokenizer}{frequent}Whiskers: 95 % sampling "
        "interval of the test images, not the spread over seeds. The interval of a gain stands in the text above; it is paired "
        "over the same test images, and narrower than the whiskers suggest. Eight hex digits name the protocol: only figures under "
        "the same ones compare."
    )


def _bars_of(run: ReportedRun, result: Result, runs: Sequence[ReportedRun]) -> list[_Bar]:
    """The run, its random initialisation, and the most frequent class, as far as they are known."""
    images = None if result.metric == "miou" else result.test_images
    evaluated = _EVALUATED.get(str(result.protocol["name"]), "pre-trained")
    label = _shortened(run.title, _LONGEST_LABEL) if len(runs) > 1 else evaluated
    gain = "" if result.gain is None else f"gain {describe_gain(result.gain, result.gain_interval)}"
    bars = [_Bar(label, result.value, RUN_COLORS[runs.index(run) % len(RUN_COLORS)], images, gain)]
    if result.random_value is not None:
        bars.append(_Bar("random", result.random_value, _RANDOM, images))
    if (floor := frequent_class(result)) is not None:
        bars.append(_Bar("most frequent class", floor, _FREQUENT, None))
    return bars


def _height(parts: dict[str, dict[tuple[str, str], _Group]]) -> float:
    groups = [group for part in parts.values() for group in part.values()]
    bars = sum(len(group.bars) for group in groups)
    return 0.34 + _DATA * len(parts) + (_TITLE + _BETWEEN) * len(groups) + _BAR * bars


def _draw(figure: Figure, parts: dict[str, dict[tuple[str, str], _Group]], facts: dict[str, Result]) -> None:
    """Everything, downwards; the unit of the vertical axis is an inch."""
    axes = figure.subplots()
    groups = [group for part in parts.values() for group in part.values()]
    highest = 100 * max(_interval(bar)[1] for group in groups for bar in group.bars)
    end, step = next((scale for scale in _SCALES if highest <= scale[0]), _SCALES[-1])
    ticks = range(0, end + 1, step)
    y, rows, labels = 0.0, [], []
    titles = _data_titles([*parts])
    for data, part in parts.items():
        _write_data(axes, y, titles[data], _counts(facts[data]))
        y += _DATA
        for group in part.values():
            _write_title(axes, y + _TITLE / 2, group)
            y += _TITLE
            axes.vlines(ticks, y, y + _BAR * len(group.bars), color=LINE, linewidth=0.6, zorder=0)
            for bar in group.bars:
                _draw_bar(axes, y + _BAR / 2, bar, 0.012 * end)
                rows.append(y + _BAR / 2)
                labels.append(bar.label)
                y += _BAR
            y += _BETWEEN
    axes.set(xlim=(0, 1.17 * end), ylim=(y - _BETWEEN + 0.04, 0))
    axes.set_yticks(rows, labels)
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), f"{end} %"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _draw_bar(axes: Axes, y: float, bar: _Bar, gap: float) -> None:
    """A bar with its interval, and its figure behind it."""
    low, high = _interval(bar)
    value, edge = 100 * bar.value, SOFT if bar.color == _FREQUENT else bar.color
    axes.barh(y, value, height=0.74 * _BAR, color=bar.color, edgecolor=edge, linewidth=0.7)
    if bar.images:
        whisker = [[value - 100 * low], [100 * high - value]]
        axes.errorbar(value, y, xerr=whisker, color=INK, elinewidth=0.8, capsize=1.8, capthick=0.8)
    strong = bar.color in RUN_COLORS
    axes.text(
        100 * high + gap, y, f"{value:.1f} %", va="center", fontsize=8.5, weight="bold" if strong else "normal",
        color=INK if strong else SOFT, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _interval(bar: _Bar) -> tuple[float, float]:
    return sampling_interval(bar.value, bar.images) if bar.images else (bar.value, bar.value)


def _write_data(axes: Axes, y: float, title: str, counts: str) -> None:
    """A data set and, below, what is known of it."""
    where = _across(axes)
    axes.text(0.01, y + 0.14, title, transform=where, weight="bold", fontsize=10, va="center", in_layout=False)
    axes.text(0.01, y + 0.31, counts, transform=where, fontsize=8, color=SOFT, va="center", in_layout=False)


def _write_title(axes: Axes, y: float, group: _Group) -> None:
    """A protocol: its name, its distinguishing settings, and its hash at the right edge."""
    where = _across(axes)
    name = axes.text(0.01, y, group.name, transform=where, weight="bold", fontsize=8.5, va="center", in_layout=False)
    words = _shortened(group.words, _LONGEST_TITLE - len(group.name))
    beside = axes.annotate(f"  {words}", (1, 0.5), xycoords=name, va="center", fontsize=8, color=SOFT, annotation_clip=False)
    beside.set_in_layout(False)
    axes.text(
        0.99, y, group.digits, transform=where, fontsize=7.5, color=SOFT, va="center", ha="right", family="DejaVu Sans Mono",
        in_layout=False,
    )  # fmt: skip


def _across(axes: Axes) -> Transform:
    """Shares of the figure's width, and inches downwards."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.figure.transFigure, axes.transData)


def _data_titles(locations: Sequence[str]) -> dict[str, str]:
    """The last part of every location, or the whole where several end alike."""
    names = {location: Path(location).name or location for location in locations}
    ends = [*names.values()]
    return {location: _shortened(name if ends.count(name) == 1 else location, _LONGEST_DATA) for location, name in names.items()}


def _counts(result: Result) -> str:
    return f"{result.classes:,} classes, {result.train_images:,} training images, {result.test_images:,} test images"


def _shortened(name: str, length: int) -> str:
    """The end of a name that is longer."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
