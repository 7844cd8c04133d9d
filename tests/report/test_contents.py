"""The numbers and pixels behind the figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from mapet.data.batch import Batch
from mapet.data.views import normalise
from mapet.objectives.mapet import MaPeT
from mapet.objectives.pim import PIM
from mapet.report.curves import running_mean
from mapet.report.drawing import canvas, short
from mapet.report.masks import in_raster_order, mask_figures, of_run, permuted_example
from mapet.report.prediction import predict
from mapet.report.probe_bars import sampling_interval
from mapet.report.probes import summarise
from mapet.report.reading import ReportedRun, entropy, open_runs
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.seeding import seeded_generator
from mapet.token_store.read import TokenStore
from tests.report.conftest import result

CONTEXT, MASK, CONTENT = 1, 2, 3


def test_verdict_doubts_what_the_test_images_cannot_tell():
    sentence = summarise([result("knn", 0.52, 0.50), result("linear", 0.45, 0.60)])
    assert "moves the k-NN accuracy from 50.0 to 52.0 % (+2.0 points, within the sampling error" in sentence
    assert "lowers the linear probe accuracy from 60.0 to 45.0 % (-15.0 points)" in sentence


def test_verdict_takes_the_first_result_of_a_protocol():
    assert "from 50.0 to 80.0 %" in summarise([result(), result("knn", 0.99, 0.1)])


def test_sampling_interval_holds_95_percent():
    draws = torch.binomial(torch.full((4000,), 200.0), torch.tensor(0.9), generator=seeded_generator("interval")) / 200
    held = [low <= 0.9 <= high for low, high in (sampling_interval(share, 200) for share in draws.tolist())]
    assert 0.93 < np.mean(held) < 0.97
    assert sampling_interval(1.0, 50)[1] == 1.0


def test_training_time_adds_up_over_starts(run):
    entries = [{"step": step, "loss": 1.0, "seconds": seconds} for step, seconds in ((1, 5), (2, 9), (3, 2), (4, 4))]
    run.metrics.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    assert ReportedRun(run, "run").training_seconds == 13


def test_loss_that_is_not_finite_is_not_drawn(run):
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"cut off', encoding="utf-8")
    assert [entry["step"] for entry in ReportedRun(run, "run").metrics] == [1]


def test_usage_counts_every_stored_token(finished):
    reported = ReportedRun(finished, "run")
    assert reported.usage.tolist() == np.bincount(np.asarray(TokenStore.open(finished.tokens).ids).ravel(), minlength=24).tolist()
    assert entropy(np.array([3, 3, 0, 3])) == pytest.approx(math.log(3))


def test_external_tokens_are_found(others, finished):
    store = ReportedRun(RunDirectory(others["mim"]), "mim").tokens.store
    assert store is not None
    assert store.path == finished.tokens


def test_titles_tell_runs_apart(run, tmp_path):
    names = [reported.title for reported in open_runs([run, RunDirectory(run.path)])]
    assert names == [str(run.path)] * 2
    assert [reported.title for reported in open_runs([run])] == ["run"]


def test_running_mean_is_centred():
    values = np.arange(9.0)
    np.testing.assert_allclose(running_mean(values, 3), [0.5, 1, 2, 3, 4, 5, 6, 7, 7.5])


def test_prediction_is_that_of_the_checkpoint(finished):
    reported = ReportedRun(finished, "run")
    shown = predict(reported)
    objective, training = reported.objective, reported.settings.training
    batch = Batch(
        normalise(torch.from_numpy(shown.image).permute(2, 0, 1).unsqueeze(0), training.mean, training.std),
        torch.from_numpy(shown.tokens).view(1, -1),
    )
    with torch.no_grad():
        output = objective(batch, objective.corrupt(batch, seeded_generator(0, "report", "corruption")), return_logits=True)
    assert shown.step == 3
    assert int(shown.hidden.sum()) == 12
    assert np.isnan(shown.probability[~shown.hidden]).all()
    assert -np.log(shown.probability[shown.hidden]).sum() == pytest.approx(float(output.loss_sum), rel=1e-4)
    assert shown.right.sum() == int(output.metrics["correct"])


def test_prediction_uses_the_trained_weights(finished):
    from safetensors.torch import load_file

    trained = load_file(finished.checkpoints / "step-00000003" / "model.safetensors")
    reported = ReportedRun(finished, "run")
    assert not torch.equal(reported.objective.state_dict()["head.weight"], trained["head.weight"])
    assert reported.load_newest_checkpoint() == 3
    assert torch.equal(reported.objective.state_dict()["head.weight"], trained["head.weight"])


@pytest.mark.parametrize("name", ["mim", "pim"])
def test_other_objectives_are_predicted_too(others, name):
    shown = predict(ReportedRun(RunDirectory(others[name]), name))
    assert int(shown.hidden.sum()) == 12
    assert np.isfinite(shown.probability[shown.hidden]).all()


@pytest.mark.parametrize("objective", [MaPeT, PIM])
def test_example_in_raster_order_shows_who_sees_what(objective):
    permutation, context = [4, 2, 0, 5, 1, 3], 2
    rank = {patch: place for place, patch in enumerate(permutation)}
    shown = in_raster_order(permuted_example(objective, permutation, context, prefix=1))
    rows = [(group.title, label) for group in shown.rows for label in group.labels]
    columns = [(group.title, label) for group in shown.columns for label in group.labels]
    assert [label for _, label in rows[:7]] == ["CLS", "0", "1", "2", "3", "4", "5"]
    for (row_group, row), line in zip(rows, shown.seen, strict=True):
        for (column_group, column), kind in zip(columns, line, strict=True):
            assert kind == expected(rank, context, row_group, row, column_group, column), (row_group, row, column_group, column)


def expected(rank: dict[int, int], context: int, row_group: str, row: str, column_group: str, column: str) -> int:
    """Section 2 of the paper's facts, one cell at a time."""
    place = -1 if column == "CLS" else rank[int(column)]
    own = -1 if row == "CLS" else rank[int(row)]
    if column_group == "contents" and place < context:
        return CONTEXT
    if row_group == "mask tokens" or own < context:
        return MASK if column_group == "mask tokens" else 0
    before = place < own or (row_group == "contents" and place == own)
    return (CONTENT if before else 0) if column_group == "contents" else (0 if before else MASK)


def test_masks_of_the_run_are_its_buffer(finished):
    objective = ReportedRun(finished, "run").objective
    seen = of_run(objective).seen  # type: ignore[arg-type]
    np.testing.assert_array_equal(seen[-24:] > 0, objective.visible.numpy())  # type: ignore[union-attr]
    assert seen.shape == (1 + 4 + 3 * 12, 1 + 4 + 2 * 12)


def test_what_a_mask_hides_is_drawn(others):
    (picture,) = mask_figures(ReportedRun(RunDirectory(others["mim"]), "mim"))
    assert picture.png.startswith(b"\x89PNG")
    assert "are hidden in the first" in picture.alt


def test_canvas_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with canvas(1.0) as drawn:
        drawn.figure.subplots()
    assert drawn.picture("empty", "alt", "caption").png.startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (12_000, "12k"), (1_500_000, "1.5M"), (0.25, "0.25")])
def test_counts_on_axes_are_short(number, text):
    assert short(number) == text
