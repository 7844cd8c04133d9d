"""`mapet reproduce`: every table can be planned, a small one is carried out, and what is missing is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mapet.cli.app import app
from mapet.compare.grid import Grid, parse_vary, settings_of
from mapet.compare.published import FIGURES, SIZES, comparison_of, load_reproduction, reproductions
from mapet.data.digits import DigitImages
from mapet.data.masked import open_segmentation
from mapet.errors import SettingsError
from mapet.evaluation.presets import protocols_of
from mapet.tokenizers.place import is_saved
from tests.tiny import LOCATION

SMALLEST = ["training.steps=2", "training.warmup_steps=1", "tokenizer.num_points=400", "tokenizer.vocab_size=20"]

QUARTERS = [(slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)) for row in (0, 1) for column in (0, 1)]


def test_the_tables_there_are() -> None:
    assert reproductions() == ["beyond-masking", "table1", "table2", "table4", "table5", "table6", "table7"]


@pytest.mark.parametrize("name", reproductions())
def test_every_size_has_settings_for_every_cell(name: str) -> None:
    """The grid, the recipe, what is set and the protocols exist; rows of the printed table are as wide as its head."""
    reproduction = load_reproduction(name)
    assert {*reproduction.sizes} <= {*SIZES}
    assert {"small", "paper"} <= {*reproduction.sizes}
    assert {len(row) for row in reproduction.printed.rows} == {len(reproduction.printed.columns)}
    for size in reproduction.sizes.values():
        assert size.data or size.wants
        assert protocols_of(size.protocols, {})
        grid = Grid(size.objectives, size.tokenizers, size.backbones, parse_vary(size.vary), seeds=size.seeds)
        for cell in grid.cells or grid.token_cells:
            if not is_saved(cell.tokenizer or ""):
                settings_of(cell, 0, size.recipe, size.set)


def test_the_cutting_point_has_a_curve_and_the_printed_figures(tmp_path: Path) -> None:
    table = load_reproduction("table6")
    small = dataclasses.replace(table.size("smoke"), vary=("objective.options.num_context=16,32",))
    table = dataclasses.replace(table, sizes={"smoke": small})
    made = comparison_of(table, "smoke", tmp_path / "out", LOCATION, seeds=1, overrides=SMALLEST)
    made.tasks = made.tasks[:1]
    made.begin()
    assert made.run() == []
    page = made.page.read_text(encoding="utf-8")
    assert "Printed in the paper (Baraldi et al., arXiv 2306.07346)" in page
    assert "84.4" in page
    assert len([*(tmp_path / "out" / "figures").glob("over-num*.png")]) == 1


def test_an_objective_with_options_is_a_cell_of_its_own() -> None:
    grid = Grid(("zoomed_in", "zoomed_in[mask_ratio=0.5,depth=2]"))
    plain, masked = grid.cells
    assert plain.name != masked.name
    assert masked.title(grid) == "zoomed_in[mask_ratio=0.5,depth=2]"
    settings = settings_of(masked, 0, "digits", ["view.name=online"]).objective
    assert settings.name == "zoomed_in"
    assert settings.options == {"mask_ratio": 0.5, "depth": 2}
    for wrong, message in [("zoomed_in[mask_ratio", "given as zoomed_in"), ("mim[]", "key=value"), ("zoom[a=1]", "no objective")]:
        with pytest.raises(SettingsError, match=message):
            Grid((wrong,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table8"], "no table or figure 'table8'.*table7"),
        (["table3"], "no table or figure 'table3'"),
        (["table4", "--size", "tiny"], "no size 'tiny'.*paper, small, smoke"),
        (["table1", "--size", "small"], "needs images: Tiny-ImageNet"),
        (["table5", LOCATION, "--size", "small"], "evaluates on other images: CIFAR-10"),
        (["table1", LOCATION, "--size", "paper"], "no tokenizer 'vq-kd' on this machine"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPET_HOME", str(tmp_path))
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["reproduce", *arguments, "--out", str(out)])
    with pytest.raises(SettingsError, match=message) if "tokenizer" not in message else pytest.raises(Exception, match=message):
        assert result.exception is not None
        raise result.exception
    assert not out.exists()


def test_figures_and_the_list(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["reproduce"]).output
    assert all(name in listed for name in [*reproductions(), "fig2", "fig3 to fig5"])
    assert FIGURES[0] == "fig2"
    drawn = CliRunner().invoke(app, ["reproduce", "fig2", "--out", str(tmp_path)])
    assert drawn.exit_code == 0, drawn.output
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["mapet.png", "mim.png", "pim.png"]


def test_labelled_digits_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 4 needs masks: four digits a picture, their ink labelled, one picture in five held out; written once."""
    monkeypatch.setenv("MAPET_HOME", str(tmp_path / "home"))
    table = load_reproduction("table4")
    made = comparison_of(table, "smoke", tmp_path / "out", seeds=1, overrides=SMALLEST)
    folder = tmp_path / "home" / "labelled-digits"
    assert [str(folder)] == [task.data for task in made.tasks]
    with (
        Image.open(folder / "annotations" / "train" / "0001.png") as mask,
        Image.open(folder / "images" / "train" / "0001.png") as image,
    ):
        ids, grey = np.asarray(mask), np.asarray(image)
    assert ids.shape == grey.shape == (32, 32)
    assert np.array_equal(ids > 0, grey >= 96)
    digits = DigitImages()
    assert digits.labels is not None
    assert [{*np.unique(ids[rows, columns])} - {0} for rows, columns in QUARTERS] == [{digit + 1} for digit in digits.labels[4:8]]
    train, test = open_segmentation(str(folder))
    assert (len(train), len(test)) == (359, 90)
    written = (folder / "labels.txt").stat().st_mtime_ns
    comparison_of(table, "smoke", tmp_path / "out", seeds=1, overrides=SMALLEST)
    assert (folder / "labels.txt").stat().st_mtime_ns == written
