from __future__ import annotations

import json

import pytest

from mapet.engine.warnings import warnings_file
from mapet.errors import NotThereError
from mapet.report.curves import curves
from mapet.report.reading import ReportedRun
from mapet.report.vitals import vital_figures, warning_texts

SIGNS = {
    "bits_gained": 1.5,
    "bits_from_image": 0.2,
    "effective_rank/patches": 9.0,
    "effective_rank/images": 5.0,
    "update/blocks": 0.01,
    "update/patch_embed": 0.0,
    "online/knn": 0.5,
    "accuracy_by_rank/1": 0.2,
    "accuracy_by_rank/2": 0.3,
}


def write(run, *entries: dict) -> ReportedRun:
    run.metrics.write_text("".join(json.dumps({"loss": 3.0, **entry}) + "\n" for entry in entries))
    return ReportedRun(run, "run")


def test_a_picture_for_every_kind_of_sign(run) -> None:
    found = write(run, {"step": 100, **SIGNS}, {"step": 200, **SIGNS, "accuracy_by_rank/2": 0.4, "bits_gained": 1.75})
    pictures = {picture.name: picture for picture in vital_figures(found)}
    assert [*pictures] == [f"vital-{name}-run" for name in ("gain", "effective-rank", "updates", "online-probe", "rank")]
    assert pictures["vital-gain-run"].alt == "Bits a token: over token frequencies 1.5 to 1.75; due to the image 0.2 to 0.2."
    assert "k-NN 50 to 50" in pictures["vital-online-probe-run"].alt
    assert "20.0 % of the first targets, 40.0 % of the last" in pictures["vital-rank-run"].alt
    assert "patch embed" not in pictures["vital-updates-run"].alt  # 0 has no place on a logarithmic axis


def test_only_what_was_logged_is_drawn(run) -> None:
    found = write(run, {"step": 10, "update/blocks": 0.01})
    assert [picture.name for picture in vital_figures(found)] == ["vital-updates-run"]
    with pytest.raises(NotThereError, match="has no vital signs yet"):
        vital_figures(write(run, {"step": 1}))


def test_warnings_in_words(run) -> None:
    warnings_file(run).unlink(missing_ok=True)  # three steps end below the band
    found = ReportedRun(run, "run")
    assert "No warnings." in warning_texts(found)
    lines = [
        {"step": 30, "name": "diverging", "message": "The loss <rises>."},
        {"step": 40, "name": "frozen", "message": "Frozen."},
        {"step": 90, "name": "diverging", "message": None},
    ]
    warnings_file(run).write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = warning_texts(found)
    assert "Step 30: The loss &lt;rises&gt;. (No longer since step 90.)" in shown
    assert "Step 40: Frozen.<" in shown
    assert shown.index("Step 30") < shown.index("Step 40")


def test_the_curve_of_the_loss_has_the_floor_at_each_position(run) -> None:
    loss = curves([ReportedRun(run, "run")])[0]
    assert "at each position" in loss.caption


def test_the_best_guess_from_a_neighbour_is_explained_where_it_is_drawn(run, monkeypatch) -> None:
    assert "best guess from one neighbour" in curves([ReportedRun(run, "run")])[1].caption
    monkeypatch.setattr("mapet.report.curves.band_of", lambda *_: None)
    assert "neighbour" not in curves([ReportedRun(run, "run")])[1].caption
