"""The scores of a comparison's tokenizers: made once, read again, and made again where what was kept is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml

import mapet
from mapet.compare import scorecards
from mapet.compare.grid import Grid
from mapet.compare.manifest import Manifest
from mapet.compare.scorecards import tokenizer_pages
from mapet.compare.tokens import tokens_of
from mapet.runtime.lock import only_writer
from tests.tiny import LOCATION, tiny_values


def manifest(out: Path) -> Manifest:
    recipe = out.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_values(training__steps=4)))
    return Manifest(out, LOCATION, str(recipe), ["tokenizer.num_points=400"], Grid(("mim",), seeds=1), {})


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, tuple[str, Any]]:
    made = manifest(tmp_path_factory.mktemp("scored") / "out")
    tokens_of(made, made.grid.cells[0])
    return made, tokenizer_pages(made)


@pytest.fixture
def again(scored: tuple[Manifest, Any], tmp_path: Path) -> Manifest:
    shutil.copytree(scored[0].out, tmp_path / "out")
    return manifest(tmp_path / "out")


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Counts how often a tokenizer is scored."""
    counted = MagicMock(side_effect=scorecards.score_tokenizer)
    monkeypatch.setattr(scorecards, "score_tokenizer", counted)
    return counted


def kept(made: Manifest) -> Path:
    (folder,) = (made.out / "tokens" / "scorecards").iterdir()
    return folder


def test_a_second_page_loads_and_computes_nothing(scored: Any, again: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("score_tokenizer", "load_tokenizer", "vocabulary_figures"):
        monkeypatch.setattr(scorecards, name, MagicMock(side_effect=AssertionError(name)))
    assert tokenizer_pages(again) == scored[1]


def test_another_title_of_the_same_tokenizer_needs_no_other_score(again: Manifest, scoring: MagicMock) -> None:
    """Two tokenizers of one name are told apart by their folders."""
    (tokenizer,) = (again.out / "tokens").glob("*/tokenizer")
    shutil.copytree(tokenizer, tokenizer.parent.with_name(f"{tokenizer.parent.name[:-6]}aaaaaa") / "tokenizer")
    content, pictures = tokenizer_pages(again)
    assert f"The codes of {tokenizer.parent.name}" in content
    assert len({picture.name for picture in pictures}) == len(pictures)
    assert scoring.call_count == 0


def cut_card(folder: Path) -> None:
    card = folder / "scorecard.json"
    card.write_text(card.read_text()[:-40])


def changed_card(folder: Path) -> None:
    card = folder / "scorecard.json"
    card.write_text(card.read_text().replace('"entropy": ', '"entropy": 1'))


def changed_picture(folder: Path) -> None:
    next(folder.glob("*.png")).write_bytes(b"")


def lost_picture(folder: Path) -> None:
    next(folder.glob("*.png")).unlink()


@pytest.mark.parametrize("damage", [cut_card, changed_card, changed_picture, lost_picture])
def test_what_is_damaged_is_made_again(damage: Callable[[Path], None], scored: Any, again: Manifest, scoring: MagicMock) -> None:
    damage(kept(again))
    assert tokenizer_pages(again) == scored[1]
    assert tokenizer_pages(again) == scored[1]
    assert scoring.call_count == 1


def test_another_version_scores_again(again: Manifest, scoring: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapet, "__version__", "99")
    tokenizer_pages(again)
    assert scoring.call_count == 1


def test_a_tokenizer_that_another_job_scores_is_left_out(again: Manifest, scoring: MagicMock) -> None:
    folder = kept(again)
    shutil.rmtree(folder)
    with only_writer(folder):
        content, pictures = tokenizer_pages(again)
    assert "another job scores now" in content
    assert pictures == []
    assert scoring.call_count == 0
