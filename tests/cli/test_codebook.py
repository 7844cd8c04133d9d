from __future__ import annotations

import json
from pathlib import Path

import pytest

from mapet.tokenizers.random_projection import RandomProjection
from tests.cli.test_commands import write_images
from tests.command import mapet

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("codebook") / "photos")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, vocabulary in (("small", 4), ("large", 40), ("other/small", 8)):
        RandomProjection(16, 4, vocabulary).save(folder / name)
    return [folder / name for name in ("small", "large", "other/small")]


def test_tokenizers_are_compared_on_the_same_images(photos, tokenizers, tmp_path, capsys):
    out = tmp_path / "out"
    assert mapet("codebook", *tokenizers[:2], photos, "--images", "20", "--workers", "0", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "20 images, best tokenizer first" in printed
    assert "Information that survives" in printed
    assert str(out / "codebook.html") in printed.replace("\n", "")
    cards = json.loads((out / "scorecard.json").read_text())["tokenizers"]
    assert [card["title"] for card in cards] == ["large", "small"]
    assert printed.index("large") < printed.index("small")
    assert {card["images"] for card in cards} == {20}
    assert all(card["labels"]["classes"] == 2 for card in cards)
    assert (out / "codebook.html").stat().st_size > 10_000


def test_options_reach_the_galleries(photos, tokenizers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--codes", "3,1", "--random", "2", "--split", "test", "--seed", "3", "--workers", "0")
    assert mapet("codebook", tokenizers[0], photos, *options) == 0
    figures = {path.name for path in (tmp_path / "codebook" / "codebook-figures").iterdir()}
    assert figures == {"codebook-chosen-small.png", "codebook-random-small.png", "codebook-usage-small.png", "survival.png"}
    content = json.loads((tmp_path / "codebook" / "scorecard.json").read_text())
    assert content["seed"] == 3
    assert content["tokenizers"][0]["images"] < 24


def test_equal_names_are_told_apart_by_their_paths(photos, tokenizers, tmp_path):
    assert (
        mapet("codebook", tokenizers[0], tokenizers[2], photos, "--random", "1", "--workers", "0", "--out", tmp_path / "out") == 0
    )
    titles = {card["title"] for card in json.loads((tmp_path / "out" / "scorecard.json").read_text())["tokenizers"]}
    assert titles == {str(tokenizers[0]), str(tokenizers[2])}


def test_unreadable_images_are_named(tokenizers, tmp_path, capsys):
    photos = write_images(tmp_path / "photos", 6)
    (photos / "left" / "broken.png").write_text("no image")
    command = ("codebook", tokenizers[0], photos, "--workers", "0", "--random", "1", "--out", tmp_path / "out")
    assert mapet(*command) == 2
    assert "broken.png" in capsys.readouterr().err
    assert mapet(*command, "--max-unreadable", "1") == 0
    assert "1 image skipped as unreadable" in capsys.readouterr().out


MISTAKES = {
    "no such code": (["{tok}", "{photos}", "--codes", "1,4"], "There is no code 4 in small; allowed: 0 to 3"),
    "no numbers": (["{tok}", "{photos}", "--codes", "1-4"], "give numbers separated by commas"),
    "twice": (["{tok}", "{tok}", "{photos}"], "is given twice"),
    "no tokenizer": (["{photos}", "{photos}"], "is not a tokenizer"),
    "no images": (["{tok}", "{tok}x"], "There is no file or folder"),
    "one image": (["{tok}", "{photos}", "--images", "1"], "--images"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_words(mistake, photos, tokenizers, tmp_path, capsys):
    words, answer = MISTAKES[mistake]
    filled = [word.replace("{tok}", str(tokenizers[0])).replace("{photos}", str(photos)) for word in words]
    assert mapet("codebook", *filled, "--workers", "0", "--out", tmp_path / "out") == 2
    assert answer in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
