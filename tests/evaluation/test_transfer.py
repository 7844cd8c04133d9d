from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mapet.checkpoints.address import load_backbone
from mapet.data.named_sets import named_location
from mapet.errors import DataError, SettingsError
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.transfer import evaluate_transfer, transfer_locations, transfer_rows
from mapet.runtime.run_directory import RunDirectory
from tests.data.images import write_images
from tests.data.named_layouts import LAYOUTS

CPU = torch.device("cpu")


def test_every_set_is_judged_by_its_own_metric(run: RunDirectory, tmp_path: Path, monkeypatch) -> None:
    for name in ("aircraft", "food101", "cifar10"):
        LAYOUTS[name](tmp_path, monkeypatch)
    write_images(tmp_path / "own", " ".join(f"{part}/{'ab'[n % 2]}/{n}.png" for part in ("train", "test") for n in range(6)))
    own = str(tmp_path / "own")
    locations = transfer_locations(["aircraft", "food101", "cifar10", own, "food101"], tmp_path)
    results = evaluate_transfer(load_backbone(run.path), locations, KNN(neighbours=2), device=CPU, folder=tmp_path / "out")
    assert {name: result.metric for name, result in results.items()} == {
        "aircraft": "mean_per_class",
        "food101": "top1",
        "cifar10": "top1",
        own: "top1",
    }
    for name, result in results.items():
        assert result.value == result.figures[result.metric]
        assert result.random_value is not None
        assert (result.train_images, result.test_images) == ((6, 6) if name == own else (6, 3))
    kept = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")]
    assert sorted(entry["data"] for entry in kept) == sorted(locations.values())
    head, *rows = transfer_rows(results)
    aircraft = results["aircraft"]
    assert rows[0][:3] == ("aircraft", "mean per class", f"{100 * aircraft.figures['mean_per_class']:.1f}")
    assert rows[0][5] == f"{100 * aircraft.figures['top1']:.1f}"
    assert len(rows) == 4
    assert {len(row) for row in (head, *rows)} == {len(head)}


def test_all_sets_are_looked_for_before_the_first_is_judged(tmp_path: Path, monkeypatch) -> None:
    LAYOUTS["food101"](tmp_path, monkeypatch)
    assert transfer_locations(["food101"], tmp_path) == {"food101": named_location("food101", tmp_path)}
    with pytest.raises(DataError, match=r"Stanford Cars \('cars'\) cannot be opened"):
        transfer_locations(["food101", "cars"], tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["food101"], "Where does Food-101 lie"),
        (["food11"], "no data set and no folder 'food11'. Did you mean 'food101'"),
        ([""], "no data set and no folder ''"),
    ],
)
def test_names_are_checked(names: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        transfer_locations(names, None)
