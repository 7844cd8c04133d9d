"""What a comparison measures and chooses besides the grid: tuned settings, other images, tokens alone, saved tokenizers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.compare.compare import Comparison
from mapet.compare.grid import Grid, parse_vary
from mapet.compare.table import markdown
from mapet.compare.tasks import Task, titles_of
from mapet.compare.tokens import existing_tokenizer
from mapet.errors import SettingsError, TokenizerError
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.tokens.protocol import TokenClassification
from tests.compare.tiny_comparison import carried_out, comparison, results
from tests.tiny import LOCATION

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_tuning_chooses_on_training_images_and_is_shown(tmp_path: Path) -> None:
    """A learning rate at which the training diverges is not chosen; the runs have the one that is. A new value may change it."""
    grid = Grid(("mim", "mapet"), tune=parse_vary(["lr=1e30,2e-3"]), seeds=1)
    made = carried_out(tmp_path / "out", grid)
    rows = results(made).rows
    assert [row.tuned for row in rows] == ["", "lr 2e-3", "lr 2e-3"]
    assert "mapet (lr 2e-3)" in markdown(rows)
    runs = [made.manifest.run(cell, 0) for cell in grid.cells]
    assert [run.read_config()["science"]["training"]["lr"] for run in runs] == [2e-3, 2e-3]
    page = made.page.read_text(encoding="utf-8")
    assert "diverged" in page
    assert "chosen" in page
    trial = made.tuning.run(made.tuning.trials[1][1])
    (result,) = [json.loads(path.read_text()) for path in trial.evaluations.glob("*.json")]
    images = runs[0].read_config()["images"]["count"]
    assert result["train_images"] + result["test_images"] == images
    again = comparison(tmp_path / "out", grid)
    assert results(again).missing == []
    assert results(comparison(tmp_path / "out", dataclasses.replace(grid, tune={"training.lr": ("2e-3", "1e-3")}))).missing


def test_trials_are_shared_by_jobs(tmp_path: Path) -> None:
    grid = Grid(("mim",), tune=parse_vary(["lr=1e-3,2e-3"]), seeds=2)
    first = carried_out(tmp_path / "out", grid, (1, 2))
    trials = [first.tuning.run(trial) for _, trial in first.tuning.trials]
    assert all(run.backbone.is_dir() for run in trials)  # its own, and the other one before it needs the choice
    assert len(results(first).missing) == 1
    assert results(carried_out(tmp_path / "out", grid, (2, 2))).missing == []


def test_what_cannot_be_tuned(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"training\.lr is varied and tuned"):
        Grid(("mim",), vary=parse_vary(["lr=1,2"]), tune=parse_vary(["training.lr=1,2"]))
    with pytest.raises(SettingsError, match="which 'segment' cannot"):
        comparison(tmp_path / "out", Grid(("mim",), tune=parse_vary(["lr=1,2"])), protocols=("segment",))


def test_several_sets_of_labelled_images(tmp_path: Path) -> None:
    """Pre-trained on one set and evaluated on two others, each with rows of its own."""
    for name, count in (("one", 3), ("two", 4)):
        write_classes(tmp_path / name, count)
    places = [str(tmp_path / "one"), str(tmp_path / "two")]
    made = carried_out(tmp_path / "out", Grid(("mim", "mapet"), seeds=1), evaluate_on=places)
    rows = results(made).rows
    assert [(row.cell, row.protocol) for row in rows[1:]] == [
        *(
            ("mim", "knn:cached (both) on one"),
            ("mapet", "knn:cached (both) on one"),
            ("random initialisation", "knn:cached (both) on two"),
        ),
        *(("mim", "knn:cached (both) on two"), ("mapet", "knn:cached (both) on two")),
    ]
    assert results(made).missing == []


def test_sets_of_one_name_are_kept_apart() -> None:
    """Named sets below one folder have their own names; folders of one name are given whole."""
    assert titles_of(["one/val"]) == {"one/val": ""}
    assert titles_of(["cars:/data", "food101:/data", "/data/own"]) == {
        "cars:/data": "cars",
        "food101:/data": "food101",
        "/data/own": "own",
    }
    assert titles_of(["one/val", "two/val", "one/val"]) == {"one/val": "one/val", "two/val": "two/val"}


def write_classes(folder: Path, count: int) -> None:
    generator = np.random.default_rng(count)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def test_tokens_alone_stand_beside_the_probes(tmp_path: Path) -> None:
    """A protocol of tokenizers is measured once for every tokenizer and seed, with or without pre-trainings."""
    grid = Grid(("mim",), ("coates", "pixels"), seeds=2)
    short = Task(TokenClassification(epochs=1, min_steps=8), LOCATION)

    def carried_out_shortly(out: Path, grid: Grid, *tasks: Task) -> Comparison:
        made = comparison(out, grid, protocols=["tokens:mlp"] if not tasks else ["knn", "tokens:mlp"])
        made.tasks = [*tasks, short]
        made.begin()
        assert made.run() == []
        return made

    made = carried_out_shortly(tmp_path / "out", grid, Task(KNN(), LOCATION))
    rows = results(made).rows
    alone = [row for row in rows if row.protocol == "tokens"]
    assert [row.cell for row in alone] == ["coates alone", "pixels alone"]
    assert [len(row.values) for row in alone] == [2, 2]
    assert alone[1].baseline == "coates alone"
    assert alone[1].difference is not None
    assert len([row for row in rows if row.protocol == "knn (both)"]) == 3
    replaced = grid.token_cells[0]
    tokenizer = existing_tokenizer(made.manifest, replaced)
    assert isinstance(tokenizer, Path)
    description = json.loads((tokenizer / "tokenizer.json").read_text())
    (tokenizer / "tokenizer.json").write_text(json.dumps({**description, "fingerprint": "0" * 64}))
    assert short.result_file(made.manifest, replaced, 0) is None  # the figure is that of another tokenizer
    only = carried_out_shortly(tmp_path / "only", dataclasses.replace(grid, objectives=()))
    assert [row.values for row in results(only).rows] == [row.values for row in alone]
    assert not (tmp_path / "only" / "runs").exists()
    with pytest.raises(SettingsError, match="only tokens are evaluated"):
        comparison(tmp_path / "none", dataclasses.replace(grid, objectives=()))


def test_unknown_tokenizers_are_refused_before_work_begins(tmp_path: Path) -> None:
    for name, message in [("coatess", "no features called 'coatess'.*coates"), ("k-clip", "no tokenizer 'k-clip' on this machine")]:
        with pytest.raises(TokenizerError, match=message):
            comparison(tmp_path / "out", Grid(("mim",), (name, "coates")))


def test_the_page_is_written_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks before the end finds what is finished, and the names of what is not."""
    monkeypatch.setattr("mapet.compare.compare._SECONDS_BETWEEN_PAGES", 0.0)
    made, pages = comparison(tmp_path / "out", Grid(("mim", "mapet"), seeds=1)), []
    write = made.write

    def writing(failed: Sequence[str] = (), with_tokenizers: bool = True) -> None:
        write(failed, with_tokenizers)
        pages.append(made.page.read_text(encoding="utf-8"))

    monkeypatch.setattr(made, "write", writing)
    made.begin()
    assert made.run() == []
    assert ["mapet, seed 0 (not finished)" in page for page in pages] == [True, False, False]
    assert ["The codes of" in page for page in pages] == [False, False, True]
