"""Comparisons of tiny runs: what they share, what they find, how they go on, and what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mapet.compare.compare import Comparison, part_of
from mapet.compare.grid import Grid, parse_vary
from mapet.compare.table import comma_separated, latex, markdown, sentences
from mapet.errors import CheckpointError, SettingsError
from mapet.runtime.files import write_json
from tests.browser import browse, needs_browser, title_of
from tests.compare.tiny_comparison import GRID, carried_out, comparison, results

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """With all figures drawn, as it is made before a test asks for blank ones."""
    return carried_out(tmp_path_factory.mktemp("finished") / "out")


@pytest.fixture
def again(finished: Comparison, tmp_path: Path) -> Comparison:
    """A copy of the finished comparison."""
    shutil.copytree(finished.manifest.out, tmp_path / "out")
    return comparison(tmp_path / "out")


def test_every_cell_and_the_random_initialisation_have_a_row(finished: Comparison) -> None:
    found = results(finished)
    assert [row.cell for row in found.rows] == ["random initialisation", "mim", "mapet", "simmim"]
    assert all(len(row.values) == 2 for row in found.rows)
    assert found.missing == []
    assert [row.difference is not None for row in found.rows] == [False, False, True, True]


def test_runs_of_a_seed_differ_in_the_objective_alone(finished: Comparison) -> None:
    """Initial weights and order follow from seed, backbone and settings, which are the same."""
    manifest = finished.manifest
    configs = [manifest.run(cell, seed).read_config() for cell in GRID.cells for seed in (0, 1)]
    common = [{name: value for name, value in config["science"].items() if name not in ("objective", "seed")} for config in configs]
    assert all(other == common[0] for other in common)
    assert len({config["images"]["sha256"] for config in configs}) == 1
    tokenised = [config for config in configs if config["science"]["objective"]["name"] != "simmim"]
    assert len({config["tokens"] for config in tokenised}) == 1


def test_the_page_holds_everything_and_needs_nothing(finished: Comparison) -> None:
    page = finished.page.read_text(encoding="utf-8")
    assert "6 of 6 runs are finished" in page
    pictures = [*(finished.manifest.out / "figures").glob("*.png")]
    assert page.count("<img") == len(pictures) == 1 + 1 + 1 + 1 + 3  # differences, losses, cost, survival of tokens, codes
    assert "Information that survives" in page
    assert "Training took " in page
    assert page.count("<td>finished</td>") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert {path.stem for path in (finished.manifest.out / "figures").glob("*.svg")} == {
        "cost-knn-cached--both",
        "difference-knn-cached--both",
        "learning-curves",
    }


@needs_browser
def test_tables_sort_in_a_browser(finished: Comparison, tmp_path: Path) -> None:
    """The second press on the head of the column of values puts the largest one first; no error reaches the console."""
    script = (
        "const head = document.querySelectorAll('thead th')[2]; head.click(); head.click();"
        "document.title = [...document.querySelector('tbody').rows].map(row => row.cells[2].textContent).join(';') + '|' +"
        "[...document.images].every(image => image.naturalWidth > 0);"
    )
    values, _, images = title_of(finished.page.read_text(encoding="utf-8"), script, tmp_path).partition("|")
    numbers = [float(text.split()[0]) for text in values.split(";")]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 4
    assert images == "true"


@needs_browser
def test_the_page_on_a_narrow_screen_in_the_dark_and_on_paper(finished: Comparison, tmp_path: Path) -> None:
    page = finished.page.read_text(encoding="utf-8")
    script = (
        "const root = document.documentElement; document.title = (root.scrollWidth <= root.clientWidth) + '|' +"
        "getComputedStyle(document.body).backgroundColor;"
    )
    narrow = "--window-size=500,900"  # the narrowest that the browser opens
    assert title_of(page, script, tmp_path, narrow) == "true|rgb(255, 255, 255)"
    assert title_of(page, script, tmp_path, narrow, "--blink-settings=preferredColorScheme=0") == "true|rgb(20, 24, 29)"
    browse(f"file://{tmp_path}/page.html", tmp_path / "profile", f"--print-to-pdf={tmp_path}/page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_tables(finished: Comparison) -> None:
    rows = results(finished).rows
    assert markdown(rows).count("\n") == 2 + len(rows)
    assert latex(rows).count(r"\\") == 1 + len(rows)
    read = [*csv.DictReader(comma_separated(rows).splitlines())]
    assert [row["cell"] for row in read] == [row.cell for row in rows]
    assert float(read[2]["difference"]) == pytest.approx(rows[2].mean - rows[1].mean)
    words = sentences(rows)
    assert len(words) == 2
    assert all("mim" in sentence and "95 % interval" in sentence for sentence in words)


def test_a_difference_over_fewer_seeds_is_stated(finished: Comparison) -> None:
    """Where the baseline lacks a seed, the difference is not that of the two means beside it."""
    row = results(finished).rows[2]
    assert "seeds of both" not in markdown([row])
    longer = dataclasses.replace(row, values={**row.values, 2: 0.9})
    assert "; over the 2 seeds of both" in markdown([longer])
    assert "over the 2 seeds of both" in sentences([longer])[0]


def test_a_finished_comparison_is_not_repeated_and_may_grow(again: Comparison) -> None:
    out = again.manifest.out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors")}
    grown = carried_out(out, dataclasses.replace(GRID, seeds=3))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [len(row.values) for row in results(grown).rows] == [3, 3, 3, 3]


def test_jobs_share_a_comparison(tmp_path: Path) -> None:
    """What one job leaves out is named until the other has done it."""
    grid = Grid(("mim", "mapet"), seeds=2)
    first = carried_out(tmp_path / "out", grid, (1, 2))
    assert results(first).missing == ["mapet, seed 0", "mapet, seed 1"]
    assert "mapet, seed 1 (not finished)" in first.page.read_text()
    second = carried_out(tmp_path / "out", grid, (2, 2))
    assert results(second).missing == []


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    made = comparison(tmp_path / "out", Grid(("mim", "mapet"), seeds=1))
    made.begin()
    blocked = made.manifest.run(made.manifest.grid.cells[0], 0).checkpoints
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file in the way")
    failed = made.run()
    assert len(failed) == 1
    assert failed[0].startswith("mim, seed 0: ")
    assert [row.cell for row in results(made).rows] == ["mapet"]
    assert "mim, seed 0" in made.page.read_text()


def test_equal_rows(tmp_path: Path) -> None:
    """MaPeT sends more rows through the blocks than MIM and so takes fewer steps."""
    made = comparison(tmp_path / "out", Grid(("mim", "mapet"), seeds=1), budget="rows")
    made.begin()
    steps = json.loads((tmp_path / "out" / "comparison.json").read_text())["steps"]
    assert steps == {"mim": 4, "mapet": round(4 * 17 / (1 + 16 + 2 * 12))}
    assert made.manifest.settings(made.manifest.grid.cells[1], 0).training.steps == steps["mapet"]


def test_equal_seconds_stay_as_they_were_measured(tmp_path: Path) -> None:
    grid = Grid(("mim", "mapet"), seeds=1)
    first = comparison(tmp_path / "out", grid, budget="seconds")
    first.begin()
    second = comparison(tmp_path / "out", grid, budget="seconds")
    second.begin()
    assert second.manifest.steps == first.manifest.steps
    assert first.manifest.steps["mim"] == 4
    assert comparison(tmp_path / "out", grid).plan() > 0


def test_what_else_is_varied(tmp_path: Path) -> None:
    grid = Grid(("mim",), vary=parse_vary(["training.lr=1e-3,2e-3"]), seeds=1)
    made = comparison(tmp_path / "out", grid)
    assert [cell.title(grid) for cell in grid.cells] == ["lr 1e-3", "lr 2e-3"]
    assert [made.manifest.settings(cell, 0).training.lr for cell in grid.cells] == [1e-3, 2e-3]
    assert len({cell.name for cell in grid.cells}) == 2


def test_each_cell_is_compared_with_the_first_objective_on_the_same_tokens() -> None:
    """The first objective is compared with itself on the first tokens; an objective without tokens with that as well."""
    grid = Grid(("mim", "mapet", "simmim"), ("coates", "pixels"), vary=parse_vary(["training.lr=1,2"]))
    pairs = {cell.title(grid): grid.baseline(cell).title(grid) for cell in grid.cells}
    first = "mim, coates, lr 1"
    assert pairs == {
        first: first,
        "mapet, coates, lr 1": first,
        "simmim, lr 1": first,
        "mim, coates, lr 2": first,
        "mapet, coates, lr 2": "mim, coates, lr 2",
        "simmim, lr 2": "mim, coates, lr 2",
        "mim, pixels, lr 1": first,
        "mapet, pixels, lr 1": "mim, pixels, lr 1",
        "mim, pixels, lr 2": first,
        "mapet, pixels, lr 2": "mim, pixels, lr 2",
    }
    tokenless = Grid(("simmim", "mapet"), ("coates", "pixels"))
    assert {tokenless.baseline(cell).objective for cell in tokenless.cells} == {"simmim"}


def test_a_saved_tokenizer_brings_its_vocabulary(finished: Comparison, tmp_path: Path) -> None:
    (saved,) = (finished.manifest.out / "tokens").glob("*/tokenizer")
    description = json.loads((saved / "tokenizer.json").read_text())
    made = comparison(tmp_path / "out", Grid(("mim",), (str(saved),), seeds=1), overrides=["tokenizer.vocab_size=77"])
    assert made.manifest.settings(made.manifest.grid.cells[0], 0).tokenizer.vocab_size == description["settings"]["vocab_size"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objectives": ("mim", "mapett")}, "no objective called 'mapett'.*mapet"),
        ({"objectives": ("mim", "mim")}, "mim is named twice"),
        ({"objectives": ()}, "at least one objective, or tokenizers alone"),
        ({"objectives": ("mim",), "seeds": 0}, "one seed"),
    ],
)
def test_grids_that_are_none(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Grid(**values)


@pytest.mark.parametrize("pair", ["training.lr", "training.lr=", "=1,2", "training.lr=1,,2"])
def test_what_is_varied_needs_values(pair: str) -> None:
    with pytest.raises(SettingsError, match="key=value1,value2"):
        parse_vary([pair])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="i/n"):
        part_of(text)


def test_wrong_names_are_refused_before_work_begins(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"budget": "hours"}, "no budget 'hours'"),
        ({"protocols": ("knnn",)}, "no protocol called 'knnn'"),
        ({"protocols": ("classify",)}, "evaluates a classifier"),
        ({"overrides": ["training.lrr=1"]}, "no setting"),
    ]
    for changes, message in wrong:
        with pytest.raises(SettingsError, match=message):
            comparison(tmp_path / "out", **changes)
    with pytest.raises(SettingsError, match="no setting"):
        comparison(tmp_path / "out", Grid(("mim",), vary=parse_vary(["training.lrr=1,2"])))
    assert not (tmp_path / "out").exists()


def test_another_comparison_in_the_folder_is_refused(again: Comparison) -> None:
    other = comparison(again.manifest.out, overrides=["tokenizer.num_points=400", "training.lr=1e-2"])
    with pytest.raises(SettingsError, match=r"holds a comparison whose training\.lr is 0\.002; now it is 0\.01"):
        other.begin()


def test_a_run_that_was_changed_by_hand_is_refused(again: Comparison) -> None:
    run = again.manifest.run(GRID.cells[1], 1)
    config = run.read_config()
    config["science"]["training"]["lr"] = 1.0
    write_json(run.config, config)
    with pytest.raises(CheckpointError, match=r"config\.json was changed"):
        results(again)


def test_runs_on_other_images_never_share_a_table(again: Comparison) -> None:
    run = again.manifest.run(GRID.cells[1], 1)
    write_json(run.config, {**run.read_config(), "images": {"count": 40, "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="cannot share a table"):
        results(again)


def test_a_damaged_result_is_named(again: Comparison) -> None:
    file = next(again.manifest.run(GRID.cells[1], 1).evaluations.glob("*.json"))
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="damaged or of another version"):
        print(results(again).rows)
