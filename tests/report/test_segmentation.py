from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mapet.errors import NotThereError
from mapet.evaluation.protocol import Result
from mapet.report import segmentation
from mapet.report.segmentation import segmentation_figures


def result(classes: int = 3, **others) -> Result:
    names = [f"class {number}" for number in range(classes)]
    details = {
        "iou": {name: 0.1 + 0.8 * number / classes for number, name in enumerate(names)} | {"absent": None},
        "test_pixels": {name: 100 * number + 1 for number, name in enumerate(names)} | {"absent": 0},
        "most_frequent_class": {"name": "class 2", "miou": 0.02, "pixel_accuracy": 0.3},
        "overlays": "segment-mean-0123abcd-11111111/overlays",
    }
    values = {
        "protocol": {"name": "segment", "version": 1, "pool": "mean"}, "protocol_hash": "0123abcd", "data": "streets",
        "classes": classes, "train_images": 72, "test_images": 45, "figures": {"miou": 0.43}, "metric": "miou", "seconds": 1.0,
        "preset": "small", "details": details,
    }  # fmt: skip
    return Result(**(values | others))


def run_with(folder: Path, *results: Result) -> SimpleNamespace:
    return SimpleNamespace(title="my run", results=list(results), run=SimpleNamespace(path=folder, evaluations=folder))


def test_bars_and_overlays_of_this_result_are_shown(tmp_path: Path) -> None:
    for data in ("11111111", "22222222"):
        folder = tmp_path / f"segment-mean-0123abcd-{data}" / "overlays"
        folder.mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (30, 20)).save(folder / f"{data}-{number}.png")
    other = Result(
        **{**vars(result()), "protocol": {"name": "knn", "pool": "mean"}, "figures": {"top1": 0.5}, "metric": "top1", "details": {}}
    )
    bars, *overlays = segmentation_figures(run_with(tmp_path, other, result()))
    assert "class 2 63.3%" in bars.alt
    assert "absent" not in bars.alt
    assert "mean is 43.0%" in bars.alt
    assert "'class 2' everywhere would give 2.0%" in bars.caption
    assert bars.png.startswith(b"\x89PNG")
    kept = "segment-mean-0123abcd-11111111"
    assert [picture.name for picture in overlays] == [f"overlay-my-run-{kept}-11111111-{number}" for number in range(4)]
    assert (overlays[0].width, overlays[0].height) == (30, 20)
    assert overlays[0].png == (tmp_path / "segment-mean-0123abcd-11111111" / "overlays" / "11111111-0.png").read_bytes()


def test_of_many_classes_the_most_frequent_are_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(segmentation, "MOST_CLASSES", 5)
    (bars,) = segmentation_figures(run_with(tmp_path, result(classes=12)))
    assert bars.caption.startswith("The 5 most frequent of 12 classes.")
    assert all(f"class {number} " in bars.alt for number in range(7, 12))
    assert "class 6 " not in bars.alt


def test_without_a_segmentation_the_command_for_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"mapet evaluate segment"):
        segmentation_figures(run_with(tmp_path))
