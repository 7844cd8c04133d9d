"""The bars: all that is written lies within the figure, and every bar says what it is of."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mapet.report import probe_bars as module
from mapet.report.probe_bars import probe_bars
from mapet.report.probes import summarise
from tests.report.conftest import result

SEGMENTED = {
    "protocol": {"name": "segment", "version": 1}, "figures": {"miou": 0.253}, "random_figures": None, "metric": "miou",
    "preset": "small", "data": "/images/camvid", "details": {"most_frequent_class": {"name": "sky", "miou": 0.031}},
}  # fmt: skip
OF_TOKENS = {
    "protocol": {"name": "tokens", "version": 1}, "random_figures": None, "preset": "mlp",
    "figures": {"top1": 0.149}, "details": {"frequent_class": 0.005},
}  # fmt: skip
LONG = (
    "/images/a folder with a name that is far too long for any figure/and_its_last_part_is_no_shorter_than_a_whole_line_and_more_so"
)


def drawn(monkeypatch: pytest.MonkeyPatch, *runs: tuple) -> tuple[Figure, list[str], module.Picture]:
    """The figure of some results, what is written in it, and the picture."""
    kept = []
    monkeypatch.setattr(module, "_draw", lambda figure, *others, draw=module._draw: (kept.append(figure), draw(figure, *others)))
    named = [SimpleNamespace(title=f"run {number}", results=results) for number, results in enumerate(runs)]
    picture = probe_bars(named)  # type: ignore[arg-type]
    (figure,) = kept
    figure.draw_without_rendering()  # at its own resolution, as boxes of text are those of the last drawing
    written = [text.get_text().strip() for text in texts(figure)]
    return figure, written, picture


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("top1", [0.004, 0.17, 0.5, 1.0])
def test_what_is_written_stays_within_the_figure_and_apart(monkeypatch: pytest.MonkeyPatch, top1: float) -> None:
    longest = result("linear", top1, 0.1, data=LONG, preset="beit_published", protocol={"name": "linear", "pool": "both"})
    widest = result("logistic", top1, 0.1, data=f"{LONG}2", preset="cached", protocol={"name": "logistic", "pool": "both"})
    runs = [(longest, result(**{"name": "x", **SEGMENTED})), (widest, result(**{"name": "x", **OF_TOKENS}))]
    figure, written, _ = drawn(monkeypatch, *runs)
    assert "beit_published, class token and mean" in written
    width, height = figure.canvas.get_width_height()
    for text in texts(figure):
        box = text.get_window_extent()
        assert -1 <= box.x0 < box.x1 <= width + 1, text.get_text()
        assert -1 <= box.y0 < box.y1 <= height + 1, text.get_text()
    for one, other in combinations(texts(figure), 2):
        assert not covers(one.get_window_extent(), other.get_window_extent()), (one.get_text(), other.get_text())


def covers(one: Bbox, other: Bbox) -> bool:
    """Whether they share more than a rim; a box of text has a little air above and below."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > 0 and down > 0.25 * min(one.height, other.height)


def test_pools_of_one_protocol_are_told_apart_whatever_its_settings_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `--pool all` with changed settings, whose names fill the line."""
    preset = "short, epochs=2, min_steps=30, ema=0.9, ..."
    pools = {pool: {"name": "finetune", "pool": pool} for pool in ("mean", "cls", "both")}
    results = [result(preset=preset, protocol=protocol, protocol_hash=f"{pool:0<8}") for pool, protocol in pools.items()]
    figure, written, _ = drawn(monkeypatch, results)
    for words in ("mean of the patches", "class token", "class token and mean"):
        assert any(text.startswith("…") and text.endswith(f", {words}") for text in written), words
    for one, other in combinations(texts(figure), 2):
        assert not covers(one.get_window_extent(), other.get_window_extent()), (one.get_text(), other.get_text())


def test_a_classifier_that_learned_nothing_here_has_bars_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"classes": 10, "outputs": 10, "copies": {"shared": 0, "test": 0}}
    kept = result(protocol={"name": "classify"}, random_figures=None, details=facts, train_images=0)
    _, written, picture = drawn(monkeypatch, [kept])
    assert "classification" in written
    assert "classifier 80.0%" in picture.alt
    assert summarise([kept]).startswith("On 360 test images of digits (10 classes): classification: 80.0 %")


def test_data_sets_are_headings_and_tell_alike_names_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["/a/photos", "/b/photos", "/a/tinyimagenet64"]
    _, written, _ = drawn(monkeypatch, [result(data=data) for data in sets])
    assert [name for name in written if name in (*sets, "photos", "tinyimagenet64")] == ["/a/photos", "/b/photos", "tinyimagenet64"]
    assert written.count("10 classes, 1,437 training images, 360 test images") == 3


def test_a_tokenizer_is_not_called_pre_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    _, written, picture = drawn(monkeypatch, [result(**{"name": "x", **OF_TOKENS})])
    assert {"token classification", "tokenizer", "14.9 %", "most frequent class", "0.5 %"} <= {*written}
    assert "pre-trained" not in written
    assert "tokenizer 14.9%, most frequent class 0.5%" in picture.alt
    assert "evaluates the tokenizer" in picture.caption


def test_a_segmentation_is_beside_the_most_frequent_class(monkeypatch: pytest.MonkeyPatch) -> None:
    segmented = result(**{"name": "x", **SEGMENTED})
    _, written, picture = drawn(monkeypatch, [segmented])
    assert {"segmentation", "small, mIoU", "pre-trained", "25.3 %", "most frequent class", "3.1 %"} <= {*written}
    assert "pre-trained 25.3%, most frequent class 3.1%" in picture.alt
    assert "the least to beat" in picture.caption
    assert "segmentation, small, mIoU: 25.3 % (the most frequent class everywhere: 3.1 %)" in summarise([segmented])


def test_without_such_a_floor_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, written, picture = drawn(monkeypatch, [result()])
    assert {"k-NN", "pre-trained", "80.0 %", "random", "50.0 %"} <= {*written}
    assert "most frequent" not in " ".join([*written, picture.alt, picture.caption])


def test_runs_are_told_apart_and_share_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    _, written, _ = drawn(monkeypatch, [result()], [result(top1=0.7)])
    assert written.count("k-NN") == 1
    assert {"run 0", "80.0 %", "run 1", "70.0 %"} <= {*written}


@pytest.mark.parametrize(("top1", "end"), [(0.1, "20 %"), (0.3, "40 %"), (0.5, "60 %"), (0.7, "100 %"), (1.0, "100 %")])
def test_the_axis_ends_where_all_bars_fit(monkeypatch: pytest.MonkeyPatch, top1: float, end: str) -> None:
    figure, written, _ = drawn(monkeypatch, [result(top1=top1, random_top1=0.05)])
    assert written.count(end) == 1
    (axes,) = figure.axes
    assert axes.get_xlim()[0] == 0
    widest = max(patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle))
    assert widest == pytest.approx(100 * top1)
    assert widest <= axes.get_xticks()[-1]
