"""Loss and token accuracy during training, beside those of guesses without the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mapet.errors import MapetError
from mapet.health.accuracy_band import band_of, stride
from mapet.health.token_floor import count_all, floor_of
from mapet.report.drawing import RUN_COLORS, SOFT, Picture, canvas, short
from mapet.report.reading import ReportedRun, entropy
from mapet.token_store.read import TokenStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMOOTHED_FROM = 80
_DASHES = ("--", ":", "-.")
_SHORT_LABEL = 34  # letters, of which two columns fit below the curve
_LONGEST_NAME = 28
_LABEL_HEIGHT = 0.17  # inches
_NEIGHBOUR = "best guess from one neighbour"


def curves(runs: Sequence[ReportedRun]) -> list[Picture]:
    """Loss, and token accuracy where the objectives predict tokens, of all runs that have logged anything."""
    logged = [run for run in runs if run.metrics]
    pictures = [_curve(logged, runs, "loss", _references(logged, runs, _loss_references))]
    if any("token_accuracy" in entry for run in logged for entry in run.metrics):
        pictures.append(_curve(logged, runs, "token_accuracy", _references(logged, runs, _accuracy_references)))
    return pictures


@dataclass(frozen=True)
class _Reference:
    """A line for comparison: its label with the run that it is of, if not of all, its value, colour and dashes."""

    label: str
    value: float
    color: str
    dash: str


def _references(
    logged: Sequence[ReportedRun], runs: Sequence[ReportedRun], lines_of: Callable[[ReportedRun], dict[str, float]]
) -> list[_Reference]:
    """What a guess without the images gets: once where all runs have the same, else for every run in its colour."""
    run_lines: list[tuple[ReportedRun, dict[str, float]]] = []
    for run in logged:
        try:
            run_lines.append((run, lines_of(run)))
        except MapetError:
            continue
    kinds = [*dict.fromkeys(name.partition(":")[0] for _, lines in run_lines for name in lines)]
    references: dict[_Reference, None] = {}
    for run, lines in run_lines:
        for name, value in lines.items():
            dash = _DASHES[kinds.index(name.partition(":")[0]) % len(_DASHES)]
            shared = all(other.get(name) == value for _, other in run_lines)
            owner, color = ("", SOFT) if shared else (f"{_name(run)}: ", _color(run, runs))
            references[_Reference(owner + name, value, color, dash)] = None
    return [*references]


def _name(run: ReportedRun) -> str:
    """The end of its title, where that is long."""
    return run.title if len(run.title) <= _LONGEST_NAME else f"…{run.title[1 - _LONGEST_NAME :]}"


def _color(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    return RUN_COLORS[runs.index(run) % len(RUN_COLORS)]


def _dash(run: ReportedRun, runs: Sequence[ReportedRun]) -> str:
    """Runs of one colour differ in it."""
    return ("-", "--", "-.", ":")[runs.index(run) // len(RUN_COLORS) % 4]


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """(n,) means over a window centred on every value, shorter at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.arange(len(values))
    low, high = np.maximum(0, centres - width // 2), np.minimum(len(values), centres + width // 2 + 1)
    return (sums[high] - sums[low]) / (high - low)


def _curve(logged: Sequence[ReportedRun], runs: Sequence[ReportedRun], quantity: str, references: Sequence[_Reference]) -> Picture:
    of_tokens = all("token_accuracy" in run.metrics[-1] for run in logged)
    loss = "Loss (nats a token)" if of_tokens else "Loss"
    title = {"loss": loss, "token_accuracy": "Token accuracy (%)"}[quantity]
    scale = 100 if quantity == "token_accuracy" else 1
    smoothed, in_words = False, []
    labels = [*(_name(run) for run in logged), *(reference.label for reference in references)]
    columns = 2 if len(labels) > 3 and max(map(len, labels)) <= _SHORT_LABEL else 1
    with canvas(3.1 + _LABEL_HEIGHT * math.ceil(len(labels) / columns)) as drawn:
        axes = drawn.figure.subplots()
        for run in logged:
            points = [(entry["step"], scale * entry[quantity]) for entry in run.metrics if quantity in entry]
            if not points:
                continue
            steps, values = np.array(points).T
            width = max(1.2, 2.8 - 0.6 * len(in_words)) if len(logged) > 1 else 1.6  # equal curves both show
            style = {"color": _color(run, runs), "linestyle": _dash(run, runs), "linewidth": width}
            smoothed |= _draw_line(axes, steps, values, _name(run), style)
            in_words.append(f"{run.title} from {values[0]:.3g} to {values[-1]:.3g} over {int(steps[-1]):,} steps")
        for line in references:
            axes.axhline(scale * line.value, color=line.color, linestyle=line.dash, linewidth=1.1, label=line.label)
        _finish(axes, title, logged)
        if quantity == "token_accuracy":
            axes.set_ylim(bottom=0)
        drawn.figure.legend(loc="outside lower left", ncols=columns)
    light = " Light: as logged; strong: running mean." if smoothed else ""
    return drawn.picture(
        quantity.replace("_", "-"), f"Curve of {title}: {'; '.join(in_words)}.", f"{_caption(quantity, references)}{light}"
    )


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, style: dict[str, Any]) -> bool:
    """Draws one run; long ones also smoothed. Returns whether it was smoothed."""
    marker = "o" if len(values) == 1 else None
    if len(values) < _SMOOTHED_FROM:
        axes.plot(steps, values, label=label, marker=marker, **style)
        return False
    axes.plot(steps, values, color=style["color"], alpha=0.3, linewidth=0.8)
    axes.plot(steps, running_mean(values, len(values) // 30), label=label, **style)
    return True


def _finish(axes: Axes, title: str, logged: Sequence[ReportedRun]) -> None:
    axes.set_title(title)
    axes.set_xlabel("optimizer step")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    batch_sizes = {run.batch_size for run in logged}
    if len(batch_sizes) == 1 and (size := batch_sizes.pop()):
        images = axes.secondary_xaxis("top", functions=(partial(np.multiply, size), partial(np.multiply, 1 / size)))
        axes.set_title("images seen", loc="right", fontsize=8.5, weight="normal", color=SOFT)
        images.xaxis.set_major_formatter(lambda value, _: short(value))
        images.spines["top"].set_visible(False)
        images.tick_params(labelsize=8, length=2, pad=1)


def _loss_references(run: ReportedRun) -> dict[str, float]:
    counts = run.usage
    lines = {
        f"uniform guess: ln {len(counts)} = {math.log(len(counts)):.2f}": math.log(len(counts)),
        f"token frequencies alone: {entropy(counts):.2f}": entropy(counts),
    }
    store = run.tokens.store
    if store is not None and (position_entropy := floor_of(count_all(store)).entropy_by_position) is not None:
        lines[f"frequencies at each position: {position_entropy:.2f}"] = position_entropy
    return lines


def _accuracy_references(run: ReportedRun) -> dict[str, float]:
    share, store = float(run.usage.max() / run.usage.sum()), run.tokens.store
    lines = {f"always the most frequent token: {100 * share:.1f} %": share}
    if store is not None and (band := band_of(_grids(store), store.vocab_size)) is not None:
        lines[f"{_NEIGHBOUR}: {100 * band.neighbour:.1f} %"] = band.neighbour
    return lines


def _grids(store: TokenStore) -> np.ndarray:
    """Tokens (n, h, w) of the first view of some images."""
    ids = store.ids[:: stride(len(store))]
    return np.asarray(ids if store.num_views is None else ids[:, 0], np.int64).reshape(-1, *store.grid_size)


def _caption(quantity: str, references: Sequence[_Reference]) -> str:
    """About the lines that are drawn."""
    in_words = _CAPTIONS[quantity] if references else ""
    if any(_NEIGHBOUR in reference.label for reference in references):
        in_words += (
            f" Sound runs end at half to twice the accuracy of the {_NEIGHBOUR}, fitted and tested on half of the images each."
        )
    return in_words


_CAPTIONS = {
    "loss": "Mean cross-entropy of the predicted tokens. What lies below the lines of the token frequencies (the entropy of the "
    "stored tokens, anywhere and at each position) is due to the images.",
    "token_accuracy": "Share of hidden patches whose token is the model's first choice.",
}
