"""The page, the table and the file of `mapet codebook`."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from mapet.data.skipped import UnreadableImages
from mapet.data.source import subset
from mapet.data.sources import open_source
from mapet.errors import SettingsError
from mapet.report import scorecard
from mapet.report.scorecard import CodeSelection, rank, table_rows, write_scorecards
from mapet.report.survival import survival_figure
from mapet.tokenizers.random_projection import RandomProjection
from mapet.tokenizers.scoring.score import score_tokenizer
from tests.report.test_html import read
from tests.tokenizers.planted import Collapsed, ColoredImages, Colors, Hashed, Listed

SOURCE = ColoredImages(40, labelled=True)


@pytest.fixture(scope="module")
def scored():
    tokenizers = {"collapsed": Collapsed(4), "colours <3>": Colors(3), "hashed": Hashed(30)}
    return [score_tokenizer(tokenizer, SOURCE, title=title) for title, tokenizer in tokenizers.items()]


def test_best_tokenizer_comes_first(scored):
    assert [entry.title for entry in rank(scored)] == ["colours <3>", "hashed", "collapsed"]
    assert [entry.title for entry in rank(reversed(scored))] == ["colours <3>", "hashed", "collapsed"]


def test_page_compares_and_shows(scored, tmp_path):
    path = write_scorecards(scored, SOURCE, tmp_path / "out", selection=CodeSelection(), seed=0)
    page = read(path)
    assert path == tmp_path / "out" / "codebook.html"
    assert page.headings[0] == "3 tokenizers on colours"
    assert [heading for heading in page.headings if heading.startswith("The codes of")] == [
        "The codes of colours <3>",
        "The codes of hashed",
        "The codes of collapsed",
    ]
    assert "0.00 of 0.00 bits in collapsed." in page.text
    assert "colours <3>" not in path.read_text(encoding="utf-8")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    files = {file.read_bytes() for file in (tmp_path / "out" / "codebook-figures").glob("*.png")}
    assert {base64.b64decode(image["src"].partition(",")[2]) for image in page.images} == files
    assert all(len(image["alt"]) > 40 for image in page.images)


@pytest.mark.usefixtures("blank_figures")
def test_file_holds_every_figure(scored, tmp_path):
    write_scorecards(scored, SOURCE, tmp_path, selection=CodeSelection(codes=(1,)), seed=5)
    content = json.loads((tmp_path / "scorecard.json").read_text())
    assert (content["format"], content["data"], content["seed"]) == (1, "colours", 5)
    assert content["environment"]["packages"]["mapet"]
    first, last = content["tokenizers"][0], content["tokenizers"][-1]
    colors = scored[1]
    assert (first["rank"], first["title"], first["fingerprint"]) == (1, "colours <3>", colors.tokenizer.fingerprint)
    assert first["information"] == colors.card.information
    assert first["survival"]["flip"] == {"same": 1.0, "information": colors.card.survival["flip"].information, "ranked": True}
    assert first["labels"]["accuracy"] == colors.card.labels.accuracy
    assert (last["title"], last["information"], last["dead"], last["centroids"]) == ("collapsed", 0.0, 3, None)


def test_table_says_what_is_measured(scored):
    rows = {name: values for name, *values in table_rows(rank(scored))}
    card = scored[1].card
    assert rows["Information that survives"][::2] == [f"{card.information:.2f} bits", "0.00 bits"]
    assert rows["Codes used"] == ["3 of 3", "30 of 30", "1 of 4"]
    assert rows["Codes unused"][2] == "3 (chance: 0)"
    assert rows["Same after horizontal flip"][0] == f"100 %, {card.survival['flip'].information:.2f} bits"
    assert rows["Same after shift by 1 patch"][1].startswith("100 %")
    assert "Distance to own centroid" not in rows


def test_values_that_do_not_apply_are_dashes():
    source = subset(open_source("digits"), range(30))
    one, several = score_tokenizer(RandomProjection(8, 8, 4), source), score_tokenizer(RandomProjection(8, 4, 4), source)
    rows = {name: values for name, *values in table_rows([one, several])}
    assert rows["Neighbours agree"][0] == rows["Same after shift by 1 patch"][0] == "–"
    assert "–" not in rows["Neighbours agree"][1]
    assert survival_figure([one, several]).name == "survival"


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (CodeSelection(), ["most-used", "usage"]),
        (CodeSelection(codes=(2, 0)), ["chosen", "usage"]),
        (CodeSelection(random=2), ["random", "usage"]),
        (CodeSelection(most_used=2, codes=(1,)), ["chosen", "most-used", "usage"]),
    ],
)
def test_galleries_are_those_asked_for(scored, tmp_path, selection, names):
    write_scorecards(scored[1:2], SOURCE, tmp_path, selection=selection, seed=0)
    files = sorted(path.name for path in (tmp_path / "codebook-figures").iterdir())
    assert files == sorted([*(f"codebook-{name}-colours--3.png" for name in names), "survival.png"])


@pytest.mark.usefixtures("blank_figures")
def test_figures_of_an_older_page_are_gone(scored, tmp_path):
    write_scorecards(scored, SOURCE, tmp_path, selection=CodeSelection(), seed=0)
    write_scorecards(scored[:1], SOURCE, tmp_path, selection=CodeSelection(random=1), seed=0)
    assert {path.name for path in (tmp_path / "codebook-figures").iterdir()} == {
        "codebook-random-collapsed.png",
        "codebook-usage-collapsed.png",
        "survival.png",
    }


def test_gallery_shows_the_images_that_were_judged():
    source = Listed([b"no image", *(SOURCE.read(index) for index in range(12))])
    entry = score_tokenizer(Colors(3), source, unreadable=UnreadableImages(1))
    vocabulary = scorecard.vocabulary_of(entry, source, seed=0)
    for index in (0, 7, 11):
        blocks = vocabulary.image(index).reshape(4, 8, 4, 8, 3).mean((1, 3))
        np.testing.assert_array_equal(blocks.argmax(2), vocabulary.ids[index])


def test_unknown_codes_are_refused(scored, tmp_path):
    with pytest.raises(SettingsError, match="There is no code 4 in collapsed; allowed: 0 to 3"):
        write_scorecards(scored[:1], SOURCE, tmp_path, selection=CodeSelection(codes=(0, 4)), seed=0)
    assert list(tmp_path.iterdir()) == []
