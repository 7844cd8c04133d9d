"""What a report says of gains, of copies, and of the differences between runs."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import numpy as np
import torch

from mapet.evaluation.outcomes import SUFFIX, Outcomes, save_outcomes
from mapet.evaluation.protocol import data_digits
from mapet.report.between_runs import comparisons
from mapet.report.html import _Report
from mapet.report.probes import summarise
from mapet.report.reading import open_runs
from mapet.runtime.files import write_json
from mapet.runtime.run_directory import RunDirectory
from tests.report.conftest import result


def test_verdict_rests_on_the_paired_interval_where_there_is_one():
    sure = result("knn", 0.52, 0.50, gain_intervals={"top1": [0.004, 0.036]}, protocol={"name": "knn", "pool": "both"})
    unsure = result("linear", 0.60, 0.50, gain_intervals={"top1": [-0.01, 0.2]})
    sentence = summarise([sure, unsure])
    assert "lifts the k-NN accuracy from 50.0 to 52.0 % (+2.0 points, 95 % interval 0.4 to 3.6)" in sentence
    assert "moves the linear probe accuracy from 50.0 to 60.0 % (+10.0 points, 95 % interval -1.0 to 20.0: not distin" in sentence
    assert sentence.endswith("Features: class token and mean (k-NN); mean of the patches (linear probe).")


def test_one_place_is_one_data_set_however_it_was_written(run, tmp_path, monkeypatch):
    """Typed from another working folder, or recorded: the name of the file knows the whole path."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    places = ["photos", str(tmp_path / "photos"), "digits"]
    run.evaluations.joinpath("knn.json").unlink()
    for number, place in enumerate(places):
        name = f"knn-mean-{number:08x}-{data_digits(place)}"
        write_json(run.evaluations / f"{name}.json", asdict(result(data=place, protocol_hash=f"{number:08x}")))
    monkeypatch.chdir("/")
    (reported,) = open_runs([run])
    assert {one.data for one in reported.results} == {"digits", "photos"}
    config = run.read_config()
    write_json(run.config, config | {"data": str(tmp_path / "photos")})
    (reported,) = open_runs([run])
    assert [one.data for one in reported.results] == [str(tmp_path / "photos")] * 2 + ["digits"]


def test_copies_stand_on_the_page(run):
    write_json(run.evaluations / "knn.json", asdict(result(details={"copies": {"shared": 12, "test": 3}})))
    text = _Report(open_runs([run]))._probes()
    assert "digits: Same content: 12 of the 360 test images are also training images" in text
    assert "3 test images are copies of other test images." in text


def test_runs_are_compared_image_by_image(run, tmp_path):
    other = RunDirectory(shutil.copytree(run.path, tmp_path / "other"))
    keys = np.array([f"{n:032x}" for n in range(360)], "S32")
    for directory, right in ((run, 300), (other, 320)):
        outcomes = Outcomes({"top1": (torch.arange(360) < right).double()}, torch.arange(360) % 10)
        save_outcomes(directory.evaluations / f"knn-0123abcd{SUFFIX}", keys, {"pre-trained": outcomes})
        (directory.evaluations / "knn.json").unlink()
        write_json(directory.evaluations / "knn-0123abcd.json", asdict(result(top1=right / 360)))
    expected = "other against run, k-NN, mean of the patches, top-1: +5.6 points [3.0, 8.0]."
    assert comparisons(open_runs([run, other])) == [expected]
    assert expected in _Report(open_runs([run, other]))._probes()
    (other.evaluations / f"knn-0123abcd{SUFFIX}").unlink()
    assert "+5.6 points (no interval: outcomes of single images" in comparisons(open_runs([run, other]))[0]
