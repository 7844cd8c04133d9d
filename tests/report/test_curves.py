"""Curves of several runs: what a guess gets names its run, and nothing is cut off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mapet.errors import NotThereError
from mapet.report.curves import curves
from mapet.report.drawing import RUN_COLORS, SOFT

LONG = "runs/a-very-long-path/with-a-rather-long-name-of-a-run"


def run(title: str, usage: list[int], steps: int = 3) -> Any:
    """A run with a log, of which only what `curves` reads is there."""
    metrics = [{"step": step, "loss": 5.0 - step, "token_accuracy": 0.1 * step} for step in range(1, steps + 1)]
    return SimpleNamespace(title=title, metrics=metrics, usage=np.array(usage), tokens=SimpleNamespace(store=None), batch_size=4)


def drawn(monkeypatch: pytest.MonkeyPatch, *runs: Any) -> list[Figure]:
    figures: list[Figure] = []
    made = matplotlib.figure.Figure.__init__

    def kept(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        made(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", kept)
    curves(runs)
    return figures


def legend(figure: Figure) -> dict[str, str]:
    """Label to colour."""
    return {str(line.get_label()): str(line.get_color()) for line in figure.legends[0].get_lines()}


@pytest.mark.parametrize("titles", [("a", "b"), ("run-28-letters-and-no-more-x", "mim")])
def test_what_a_guess_gets_names_its_run_where_runs_differ(monkeypatch: pytest.MonkeyPatch, titles: tuple[str, str]) -> None:
    """With two runs of other tokens."""
    first, second = titles
    loss, accuracy = drawn(monkeypatch, run(first, [5, 3, 2, 1]), run(second, [9, 1, 1, 1]))
    assert legend(loss) == {
        first: RUN_COLORS[0],
        second: RUN_COLORS[1],
        "uniform guess: ln 4 = 1.39": SOFT,
        f"{first}: token frequencies alone: 1.24": RUN_COLORS[0],
        f"{second}: token frequencies alone: 0.84": RUN_COLORS[1],
    }
    assert f"{second}: always the most frequent token: 75.0 %" in legend(accuracy)


@pytest.mark.parametrize("number", [1, 2, 6])
def test_legends_stay_within_the_figure_below_the_curve(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    for figure in drawn(monkeypatch, *(run(f"{LONG}-{index}", [9, 1 + index, 1, 1]) for index in range(number))):
        width, height = figure.canvas.get_width_height()
        bottom = figure.axes[0].get_window_extent().y0
        for text in figure.legends[0].findobj(Text):
            box = text.get_window_extent()
            assert 0 <= box.x0 <= box.x1 <= width
            assert 0 <= box.y0 <= box.y1 <= min(height, bottom)
        assert figure.axes[0].get_window_extent().height > height / 4


def test_runs_without_tokens_have_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untokenised(SimpleNamespace):
        @property
        def usage(self) -> np.ndarray:
            raise NotThereError("no tokens")

    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (loss,) = drawn(monkeypatch, Untokenised(title="mae", metrics=metrics, batch_size=4))
    assert [*legend(loss)] == ["mae"]
