"""`mapet objectives`: the list, one objective in words with all its options, and its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.objectives import OBJECTIVES
from tests.command import mapet


def test_every_objective_is_listed_with_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("objectives") == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()[:1] != []}
    assert set(OBJECTIVES) <= set(listed)
    assert "tokens" in listed["mapet"]
    assert " 491 " in listed["mapet"]
    assert "pixels, teacher" in listed["mvp"]


def test_one_is_explained_with_options_of_its_bases_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("objectives", "zoomed_out") == 0
    printed = capsys.readouterr().out
    assert "Source: task (b) of Tian et al." in printed
    assert "one_place (default False)\n      Draw one place for all images of a batch, as released.\n" in printed
    assert "mask_ratio (default None)\n      Share of the patches" in printed
    assert "backbone (" not in printed
    assert mapet("objectives", "mvp") == 0
    assert "teacher (must be given)" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_no_option_goes_without_a_word(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("objectives", name) == 0
    lines = capsys.readouterr().out.partition("Options (")[2].splitlines()[2:]
    options = [number for number, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    assert options
    assert all(lines[number + 1].strip() for number in options)


def test_figure_shows_the_image_given_and_obeys_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    red = {}
    for context in (2, 150):
        out = tmp_path / f"{context}.png"
        assert mapet("objectives", "mim", "--image", tmp_path / "red.png", "--out", out, "--set", f"num_context={context}") == 0
        assert out.stat().st_size < 250_000
        pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
        third = pixels.shape[1] // 3
        is_red = (abs(pixels - (200, 30, 30)) < 12).all(axis=2)
        red[context] = [is_red[:, place * third : (place + 1) * third].sum() for place in range(3)]
    whole, seen, predicted = red[2]
    assert seen < 0.03 * whole
    assert predicted > 0.9 * whole
    assert red[150][1] == pytest.approx(150 / 196 * whole, rel=0.05), "what is seen"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--out", "x.png"], "Which objective is to be drawn?"),
        (["mim", "--image", "x.png"], "Where is the figure to be written?"),
        (["mim", "--out", "x.jpg"], "does not end in .png"),
        (["mim", "--out", "x.png", "--image", "none.png"], "none.png: the file cannot be opened"),
        (["mim", "--out", "x.png", "--set", "num_contxt=3"], "no option 'num_contxt'"),
        (["mi"], "Did you mean 'mim'"),
    ],
)
def test_mistakes_are_answered_in_words(
    words: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mapet("objectives", *words) == 2
    assert answer in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
