from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.checkpoints.address import LoadedBackbone
from mapet.errors import SettingsError
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.presets import presets_of, protocol_of
from mapet.evaluation.segmentation.overlays import LINE, WIDTH, class_color, overlay
from mapet.evaluation.segmentation.protocol import Segment
from tests.evaluation.segmentation.pictures import write_folder
from tests.evaluation.segmentation.test_training import SMALL, SPEC


def test_bright_and_dark_squares_are_found(tmp_path: Path) -> None:
    pictures = write_folder(tmp_path / "pictures", train=12, test=4)
    target = LoadedBackbone(SPEC.build(), SPEC, "tiny")
    protocol = Segment(
        **{**SMALL, "steps": 60, "batch_size": 6, "lr": 5e-3, "warmup_steps": 5, "layer_decay": 1.0, "drop_path": 0.0}
    )
    out = tmp_path / "out"
    (result,) = evaluate(target, str(pictures), [protocol], device=torch.device("cpu"), folder=out)
    constant = result.details["most_frequent_class"]
    assert f"'ground' everywhere  {100 * constant['miou']:.1f} %   protocol" in result.line()
    assert constant["name"] == "ground"
    assert result.figures["miou"] > 0.6 > constant["miou"] + 0.2
    assert result.figures["pixel_accuracy"] > constant["pixel_accuracy"]
    assert result.value == result.figures["miou"] == pytest.approx(np.mean([*result.details["iou"].values()]))
    assert (result.classes, result.train_images, result.test_images, result.random_figures) == (3, 12, 4, None)
    assert [*result.details["iou"]] == ["ground", "bright", "dark"]
    kept = out / protocol.stem(str(pictures))
    assert json.loads(kept.with_name(f"{kept.name}.json").read_text())["figures"] == result.figures
    assert len([*(kept / "overlays").iterdir()]) == 4
    assert len([*(kept / "checkpoints").iterdir()]) == 1


def test_the_backbone_is_judged_as_it_was_given(folder: Path, tmp_path: Path) -> None:
    backbone = SPEC.build()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    protocol = Segment(**SMALL)
    target, device = LoadedBackbone(backbone, SPEC, "tiny"), torch.device("cpu")
    first, again = (
        evaluate(target, str(folder), [protocol], device=device, folder=tmp_path / name)[0] for name in ("one", "another")
    )
    assert first.figures == again.figures
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_overlays_show_classes_in_their_colours_and_ignored_pixels_in_black() -> None:
    truth = np.array([[0, 1], [-1, 1]], np.int16).repeat(20, 0).repeat(20, 1)
    found = np.ones((40, 40), np.int64)
    picture = np.asarray(overlay(Image.new("RGB", (40, 40), "white"), truth, found, ["sky", "road"]))
    height = WIDTH
    middle = {
        place: picture[LINE + height * row // 4, WIDTH + 6 + WIDTH * column // 4]
        for place, row, column in (("sky", 1, 1), ("road", 1, 3), ("ignored", 3, 1))
    }
    for place, color in (("sky", class_color(0)), ("road", class_color(1)), ("ignored", (0, 0, 0))):
        np.testing.assert_allclose(middle[place], 0.65 * np.array(color) + 0.35 * 255, atol=2)
    np.testing.assert_allclose(picture[LINE + 20, 2 * (WIDTH + 6) + 20], 0.65 * np.array(class_color(1)) + 0.35 * 255, atol=2)
    assert (picture[LINE : LINE + height, :WIDTH] == 255).all()
    legend = picture[LINE + height + 6 :]
    for color in (class_color(0), class_color(1), (0, 0, 0)):
        assert (legend == color).all(axis=-1).sum() > 50


def test_hundreds_of_classes_have_colours_of_their_own() -> None:
    assert len({class_color(number) for number in range(150)}) == 150


@pytest.mark.parametrize("classes", [2, 150])
def test_legends_take_the_lines_they_need(classes: int) -> None:
    found = np.arange(classes).repeat(4).reshape(classes * 2, 2)
    image = Image.new("RGB", (100, 50))
    picture = overlay(image, found, found, [f"class number {number}" for number in range(classes)])
    lines = (picture.height - LINE - WIDTH // 2 - 6) / LINE
    assert lines == 1 if classes == 2 else 10 < lines < 25


def presets() -> dict[str, Any]:
    return {name: protocol_of(f"segment:{name}") for name in presets_of("segment")}


def test_presets_are_valid_and_differ() -> None:
    found = presets()
    assert next(iter(found)) == "small"
    assert len({protocol.hash for protocol in found.values()}) == len(found)


def test_base_is_table_10() -> None:
    base = presets()["base"]
    assert (base.crop, base.steps, base.batch_size, base.lr, base.warmup_steps) == (512, 160_000, 16, 5e-5, 1500)
    assert (base.layer_decay, base.weight_decay, base.drop_path, base.aux_weight) == (0.75, 0.05, 0.15, 0.4)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 1}, {"stride": 600}, {"scale": (100, 200)}, {"ratio": (2.0, 0.5)}, {"steps": 100}, {"dropout": 1.0}],
)
def test_values_that_are_not_allowed_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError, match=rf"segment: {'warmup_steps' if 'steps' in wrong else next(iter(wrong))} = "):
        Segment(**wrong)
