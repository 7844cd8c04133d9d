"""Figures that are true: broken features are refused, copies are counted, gains have paired intervals, pools are named."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapet.errors import FailedRunError, ModelError, SettingsError
from mapet.evaluation.copies import KeyedImages, count_copies
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.intervals import describe, gain_intervals, is_distinguishable, mean_interval, paired_interval
from mapet.evaluation.outcomes import SUFFIX, Outcomes, classified, load_outcomes, save_outcomes
from mapet.evaluation.presets import PROTOCOLS, presets_of, protocol_of, protocols_of, summary
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.probes.representations import rounded_to_half
from mapet.evaluation.protocol import Metrics, Protocol, Result
from mapet.evaluation.segmentation.miou import scores_of_pixels
from mapet.runtime.run_directory import RunDirectory
from tests.data.images import write_images
from tests.evaluation.planted import tiny_frozen
from tests.evaluation.test_protocol import result

CPU = torch.device("cpu")
QUICK: dict[str, dict[str, Any]] = {
    "knn": {},
    "logistic": {},
    "fewshot:10": {"draws": 1},
    "linear": {"epochs": 1, "min_steps": 1},
    "linear:paper": {"epochs": 1},
    "linear:beit": {"epochs": 1},
    "attentive": {"epochs": 1, "min_steps": 1},
    "finetune": {"epochs": 1, "min_steps": 1, "warmup_epochs": 0},
}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25], ids=["nan", "inf", "too large"])
@pytest.mark.parametrize("title", QUICK)
def test_features_that_are_not_finite_are_refused(title: str, value: float) -> None:
    """R12, F9: by every protocol, where they are extracted, with the first image; never as a learning rate that is too high."""
    frozen = tiny_frozen()
    with torch.no_grad():
        frozen.backbone.get_parameter("norm.weight").fill_(value)
        if not math.isfinite(value) or title == "linear:beit":  # it looks at the blocks in front of the norm
            frozen.backbone.get_parameter("blocks.0.mlp.fc2.bias").fill_(value)
    with pytest.raises(ModelError, match=r"features of \d+ of \d+ images are not finite .* the first of ") as refused:
        protocol_of(title, QUICK[title]).evaluate(frozen)
    assert "lr" not in str(refused.value)
    if not math.isfinite(value):
        assert "is not finite: the file is damaged" in str(refused.value)


def test_scores_that_are_not_finite_are_no_figure() -> None:
    """R12: whatever a protocol computes in between."""
    scores = torch.eye(4)
    scores[2, 1] = math.nan
    with pytest.raises(FailedRunError, match="scores of 1 of 4 test images are NaN or infinite"):
        classified(scores, torch.arange(4))


def test_an_attentive_probe_keeps_features_beyond_half_precision() -> None:
    """R13: large features give what the same features give at their usual size."""
    figures = []
    for scale in (1.0, 1e6):
        frozen = tiny_frozen()
        with torch.no_grad():
            for name in ("norm.weight", "norm.bias"):
                frozen.backbone.get_parameter(name).mul_(scale)
        figures.append(protocol_of("attentive", {"epochs": 1, "min_steps": 40}).evaluate(frozen).values["top1"])
    assert figures[1] == figures[0] > 0.9


@pytest.mark.parametrize("title", ["knn", "linear", "linear:paper", "attentive"])
@pytest.mark.parametrize(("offset", "lines"), [(0.0, 0), (100.0, 0), (1e3, 1), (7e4, 1)])
def test_features_that_hardly_differ_are_stated(title: str, offset: float, lines: int, capsys) -> None:
    """R13: a large number that all features have in common leaves few digits; one line, whatever the protocol."""
    frozen = tiny_frozen()
    with torch.no_grad():
        frozen.backbone.get_parameter("norm.bias").add_(offset)
    protocol_of(title, QUICK[title]).evaluate(frozen)
    assert " ".join(capsys.readouterr().err.split()).count("Little precision is left") == lines


def test_numbers_within_half_precision_are_rounded_as_ever() -> None:
    numbers = torch.tensor([[1.0001, -3.3], [65_504.0, 0.1]])
    assert rounded_to_half(numbers).dtype == torch.float16
    large = torch.cat([numbers, torch.tensor([[70_000.0, -1e9]])])
    assert torch.equal(rounded_to_half(large), torch.cat([numbers.half().float(), large[2:]]))


def twice(folder: Path) -> str:
    """Ten images a part; all test images are training images."""
    write_images(folder, " ".join(f"train/{'ab'[n % 2]}/{n}.png" for n in range(10)))
    shutil.copytree(folder / "train", folder / "val")
    return str(folder)


@pytest.mark.parametrize("title", ["knn", "linear:paper", "finetune"])
def test_test_images_that_are_training_images_are_counted(run: RunDirectory, tmp_path: Path, capsys, title: str) -> None:
    """R19: once in a line, and in the result."""
    protocols = [protocol_of(title, QUICK[title])]
    (found,) = evaluate(run, twice(tmp_path / "images"), protocols, device=CPU, folder=tmp_path / "out", with_random=False)
    assert found.details["copies"]["shared"] == 10
    assert capsys.readouterr().err.count("10 of the 10 test images are also training images") == 1


def test_one_image_under_two_labels_is_counted(run: RunDirectory, tmp_path: Path, capsys) -> None:
    """R19: within the training part, within the test part, and across both."""
    folder = tmp_path / "images"
    write_images(folder, " ".join(f"{part}/{'ab'[n % 2]}/{part}{n}.png" for part in ("train", "val") for n in range(10)))
    shutil.copy(folder / "train/a/train0.png", folder / "train/b/again.png")
    shutil.copy(folder / "val/a/val0.png", folder / "val/b/again.png")
    shutil.copy(folder / "val/b/val1.png", folder / "val/b/copy.png")
    shutil.copy(folder / "train/a/train2.png", folder / "val/b/other.png")
    (found,) = evaluate(run, str(folder), [KNN()], device=CPU, folder=tmp_path / "out", with_random=False)
    expected = {"shared": 1, "shared_otherwise": 1, "training": 1, "training_labels": 2, "test": 2, "test_labels": 2}
    assert found.details["copies"] == expected
    assert "1 test images have another label in the training part; 2 training images also occur" in capsys.readouterr().err


def test_without_copies_nothing_is_said(run: RunDirectory, capsys) -> None:
    (found,) = evaluate(run, None, [KNN()], device=CPU, with_random=False)
    assert not any(found.details["copies"].values())
    assert "Same content" not in capsys.readouterr().err


def test_copies_are_counted_without_labels() -> None:
    keys = np.array(["a", "b", "b"], "S32")
    assert count_copies(KeyedImages(keys, None), KeyedImages(keys[1:], None)).describe() == {
        "shared": 2, "shared_otherwise": 0, "training": 1, "training_labels": 0, "test": 1, "test_labels": 0
    }  # fmt: skip


def exact_mcnemar(won: int, lost: int) -> float:
    """The two-sided p of the exact test."""
    total = won + lost
    tail = sum(math.comb(total, k) for k in range(min(won, lost) + 1)) / 2**total
    return min(1.0, 2 * tail)


def test_the_interval_agrees_with_the_exact_test() -> None:
    disagreements = []
    for won in range(25):
        for lost in range(won):
            differences = np.concatenate([np.ones(won), -np.ones(lost), np.zeros(400 - won - lost)])
            sure, p = is_distinguishable(mean_interval(differences)), exact_mcnemar(won, lost)
            if sure != (p < 0.05):
                disagreements.append(p)
    assert all(0.05 <= p < 0.08 for p in disagreements), "it never misses what the exact test finds"
    assert len(disagreements) < 20


def test_the_interval_covers_the_true_difference() -> None:
    generator = np.random.default_rng(0)
    differences = generator.choice([1, -1, 0], p=[0.12, 0.06, 0.82], size=(4000, 60))
    covered = [low <= 0.06 <= high for low, high in map(mean_interval, differences)]
    assert 0.94 < np.mean(covered) < 0.98


def test_other_figures_are_resampled_with_their_images_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    before = torch.rand(300, generator=generator) < 0.5
    after = before | (torch.rand(300, generator=generator) < 0.2)
    outcomes = [Outcomes({"top1": right.double()}, labels) for right in (after, before)]
    found = gain_intervals(*outcomes)
    assert found == gain_intervals(*outcomes), "seeded"
    assert found["mean_per_class"] == pytest.approx(found["top1"], abs=0.01), "classes are of one size"
    assert found["top1"][0] > 0
    few = [Outcomes({"top1": torch.full((3,), value).double()}, labels[:3]) for value in (1, 0)]
    assert not is_distinguishable(gain_intervals(*few)["mean_per_class"]), "three images are no proof"


def test_the_interval_of_miou_is_over_images() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(50, 100, (40, 1, 3), generator=generator)
    right = [(truth * share).long() for share in (0.8, 0.6)]
    after, before = (Outcomes({}, pixels=torch.cat([some, truth, truth], dim=1)) for some in right)
    found = gain_intervals(after, before)
    gain = scores_of_pixels(after.pixels.sum(0)).miou - scores_of_pixels(before.pixels.sum(0)).miou  # type: ignore[union-attr]
    low, high = found["miou"]
    assert low < gain < high < low + 0.05
    assert [*found] == ["miou", "pixel_accuracy", "mean_class_accuracy"]


def test_the_interval_of_miou_is_narrow_where_every_image_gains_alike() -> None:
    shares = torch.rand(40, 1, 1, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2  # images differ far more than backbones
    truth = torch.full((40, 1, 3), 1000)
    after, before = (
        Outcomes({}, pixels=torch.cat([(truth * (shares + gain)).long(), truth, truth], dim=1)) for gain in (0.02, 0.0)
    )
    low, high = gain_intervals(after, before)["miou"]
    assert 0 < low < high < low + 0.01


def test_a_doubtful_gain_is_said_in_words() -> None:
    assert describe(0.118, [0.096, 0.139]) == "+11.8 points [9.6, 13.9]"
    assert describe(-0.002, [-0.02, 0.016]) == "-0.2 points [-2.0, 1.6], not distinguishable"
    assert describe(0.118, None) == "+11.8 points"
    doubtful = result(KNN(), gain_intervals={"top1": [-0.01, 0.5]})
    assert "gain +25.0 points [-1.0, 50.0], not distinguishable   protocol" in doubtful.line()


def test_outcomes_lie_beside_the_result(run: RunDirectory, tmp_path: Path) -> None:
    protocols = protocols_of(["knn", "fewshot:10"], {"draws": 2})
    results = evaluate(run, None, protocols, device=CPU, folder=tmp_path)
    for protocol, found in zip(protocols, results, strict=True):
        path = tmp_path / f"{protocol.stem(found.data)}{SUFFIX}"
        keys, after = load_outcomes(path)
        _, before = load_outcomes(path, "random")
        assert len({*keys.tolist()}) == found.test_images == 20
        assert after.metrics()["top1"] == pytest.approx(found.figures["top1"])
        assert before.metrics()["top5"] == pytest.approx(found.random_figures["top5"])  # type: ignore[index]
        assert found.gain_intervals["top1"] == pytest.approx(gain_intervals(after, before)["top1"], abs=1e-6)
        assert found.gain_interval == found.gain_intervals["top1"]


def test_other_runs_are_paired_by_content(tmp_path: Path) -> None:
    keys = np.array([f"{n:032x}" for n in (1, 2, 3, 2)], "S32")
    outcomes = Outcomes({"top1": torch.tensor([1.0, 0, 1, 1]).double()}, torch.arange(4))
    save_outcomes(tmp_path / "one", keys, {"pre-trained": outcomes})
    one = load_outcomes(tmp_path / "one")
    order = [3, 2, 0, 1]
    other = keys[order], Outcomes({"top1": outcomes.values["top1"][[1, 2, 0, 3]]}, torch.tensor(order))
    assert paired_interval(one, other, "top1") == list(mean_interval(np.zeros(4)))
    assert paired_interval(one, (np.array(["ff" * 16], "S32"), outcomes), "top1") is None


def test_a_result_of_an_older_version_is_read() -> None:
    values = json.loads(json.dumps(dataclasses.asdict(result(KNN()))))
    del values["gain_intervals"]
    older = Result(**values)
    assert older.gain_interval is None
    assert "gain +25.0 points   protocol" in older.line()


def test_probes_take_both_unless_a_paper_says_otherwise() -> None:
    pools = {
        f"{name}:{preset}": protocol_of(f"{name}:{preset}").pool
        for name in ("knn", "linear", "logistic", "fewshot")
        for preset in presets_of(name)
    }
    others = {title: pool for title, pool in pools.items() if pool != "both"}
    assert others == {"knn:dino": "mean", "linear:paper": "mean", "linear:paper_cached": "mean", "linear:cae": "cls"}
    papers = {
        "knn:dino": "374227cb",
        "linear:paper": "520f63a8",
        "linear:beit": "b4e9a399",
        "linear:cae": "3128f546",
        "attentive": "315291af",
    }
    assert {title: protocol_of(title).hash for title in papers} == papers, "as before the default changed"


def test_every_pool_is_measured_when_all_are_wanted() -> None:
    assert [protocol.pool for protocol in protocols_of(["knn"], {"pool": "all"})] == ["mean", "cls", "both"]
    assert [protocol.pool for protocol in protocols_of(["finetune"], {"pool": "all"})] == ["mean", "cls"]
    with pytest.raises(SettingsError, match="None of tokens, segment has a setting 'pool'"):
        protocols_of(["tokens", "segment"], {"pool": "cls"})


def test_a_note_is_printed_once_for_all_pools(run: RunDirectory, capsys) -> None:
    protocols = protocols_of(["linear"], {"pool": "all", "epochs": 1, "min_steps": 1})
    evaluate(run, None, protocols, device=torch.device("cpu"), with_random=False)
    assert capsys.readouterr().err.count("fewer than a batch") == 1


def test_pools_that_differ_much_are_said() -> None:
    outcomes = Outcomes({"top1": torch.ones(1000).double()})
    found, random = (
        Metrics({}, {"top1_by_pool": dict(zip(("mean", "cls", "both"), shares, strict=True))}, outcomes)
        for shares in ((0.526, 0.618, 0.612), (0.5, 0.5, 0.5))
    )
    assert KNN().remark(found, random) == (
        "The pool matters here: mean 52.6 % (+2.6 points), cls 61.8 % (+11.8 points), both 61.2 % (+11.2 points). --pool all "
        "measures every protocol with each."
    )
    assert KNN().remark(random, None) == ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unwritten(Protocol):
    """A protocol without a YAML file."""

    name = "unwritten"

    def evaluate(self, frozen: Any) -> Metrics:
        return Metrics({"top1": 0.5})


def test_a_protocol_needs_no_file(run: RunDirectory, monkeypatch, capsys) -> None:
    """House, row F: it is listed, printed and evaluated."""
    from mapet.cli.protocols import protocols

    monkeypatch.setitem(PROTOCOLS._entries, "unwritten", f"{__name__}:Unwritten")
    assert protocol_of("unwritten") == Unwritten()
    assert summary("unwritten") == "A protocol without a YAML file."
    protocols(None)
    protocols("unwritten")
    printed = capsys.readouterr().out
    assert f"unwritten    A protocol without a YAML file.\n    unwritten                    protocol {Unwritten().hash}" in printed
    assert "pool: both" in printed
    (found,) = evaluate(run, None, protocols_of(["unwritten"], {}), device=CPU)
    assert found.line().startswith("unwritten (both)")
    with pytest.raises(SettingsError, match=r"'unwritten' has no preset 'paper'\. It has none: write 'unwritten' alone"):
        protocol_of("unwritten:paper")
