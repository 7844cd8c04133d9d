"""Tokenizers side by side: tokens that stay the same, and information that survives, for every small change of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mapet.report.drawing import INK, LINE, RUN_COLORS, SOFT, Picture, canvas
from mapet.tokenizers.scoring.perturbations import PERTURBATIONS
from mapet.tokenizers.scoring.scorecard import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v"
_BETWEEN = 0.17  # rows between the dots of neighbouring tokenizers


def survival_figure(ranked: Sequence[Judged]) -> Picture:
    """Two panels of dots, a row for every change and a colour for every tokenizer, best tokenizer on top."""
    changes = [change for change in PERTURBATIONS if change.name in ranked[0].card.survival]
    height = 0.42 + max(0.0, (len(ranked) - 2) * 0.1)
    with canvas(1.0 + height * (len(changes) + 1) + 0.2 * len(ranked)) as drawn:
        stability, information = drawn.figure.subplots(1, 2, sharey=True)
        rows = ["no change", *(change.title for change in changes)]
        names = [change.name for change in changes]
        for place, entry in enumerate(ranked):
            survival = [entry.card.survival.get(name) for name in names]
            shares = [100.0, *(100 * score.same if score else float("nan") for score in survival)]
            bits = [entry.card.entropy, *(score.information if score else float("nan") for score in survival)]
            _draw_dots(stability, shares, place, len(ranked), f"{entry.title}: {entry.card.information:.2f} bits on average")
            _draw_dots(information, bits, place, len(ranked), None)
        stability.set(xlim=(-4, 104), yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
        information.set_xlim(left=-0.04 * max(1.0, *(entry.card.entropy for entry in ranked)))
        stability.set_title("Same token (%)")
        information.set_title("Information kept (bits)")
        for axes in (stability, information):
            _rule(axes, len(rows))
        drawn.figure.legend(loc="outside lower left", ncols=1, handletextpad=0.3)
    bits_in_words = "; ".join(
        f"{entry.title}: {entry.card.information:.2f} of {entry.card.entropy:.2f} bits survive" for entry in ranked
    )
    return drawn.picture(
        "survival",
        f"Dots for every tokenizer and every change of the images: the share of tokens that stay the same, and the bits that "
        f"survive. On average {bits_in_words}.",
        "After every change of the images: the share of unchanged tokens, and the information of tokens about those before. "
        "Open: nothing is changed, all information is there (the entropy of a token). A shift by a whole patch changes no patch "
        "and is left out of the average. Many equal tokens with little information: few codes. Much information with few equal "
        "tokens: codes change into others in a regular way, such as edges into their mirror image.",
    )


def _draw_dots(axes: Axes, values: list[float], place: int, tokenizers: int, label: str | None) -> None:
    """One tokenizer: an open mark for the unchanged images, then a filled one for every change."""
    color, marker = RUN_COLORS[place % len(RUN_COLORS)], _MARKERS[place % len(_MARKERS)]
    rows = [row + _BETWEEN * (place - (tokenizers - 1) / 2) for row in range(len(values))]
    axes.hlines(rows, 0, values, color=color, linewidth=0.9, alpha=0.35)
    axes.plot(values[:1], rows[:1], linestyle="", marker=marker, markersize=5, markerfacecolor="white", color=color, clip_on=False)
    axes.plot(values[1:], rows[1:], linestyle="", marker=marker, markersize=5, color=color, label=label, clip_on=False)


def _rule(axes: Axes, rows: int) -> None:
    axes.hlines([row + 0.5 for row in range(rows - 1)], 0, 1, transform=axes.get_yaxis_transform(), color=LINE, linewidth=0.6)
    axes.axvline(0, color=SOFT, linewidth=0.7)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x")
