from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mapet.engine.warnings import read_warnings
from mapet.health import signs
from mapet.health.accuracy_band import AccuracyBand, band_of, stored_band
from mapet.pretraining.training import PreTraining
from mapet.runtime.run_directory import RunDirectory
from tests.tiny import tiny_settings, tiny_source, tiny_trainer

CPU = torch.device("cpu")


def naive_band(grids: np.ndarray) -> tuple[float, float]:
    """(frequent, neighbour), pair by pair."""
    counted, position = grids[::2], grids[1::2]
    frequent = Counter(counted.ravel().tolist()).most_common(1)[0][0]
    shares = []
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        beside: dict[int, Counter] = defaultdict(Counter)
        right = []
        for grid, learn in [*((grid, True) for grid in counted), *((grid, False) for grid in position)]:
            for y, x in np.ndindex(grid.shape):
                if 0 <= y + dy < grid.shape[0] and 0 <= x + dx < grid.shape[1]:
                    known, hidden = int(grid[y, x]), int(grid[y + dy, x + dx])
                    if learn:
                        beside[known][hidden] += 1
                    else:
                        most = max(beside[known].values(), default=0)
                        guess = max((t for t, n in beside[known].items() if n == most), default=frequent)
                        right.append(guess == hidden)
        shares.append(np.mean(right))
    return float((position == frequent).mean()), float(np.mean(shares))


def test_it_is_what_counting_pair_by_pair_gives() -> None:
    generator = np.random.default_rng(0)
    grids = np.sort(generator.integers(0, 7, (30, 3, 5)), axis=2)
    grids[1::2, 0, 0] = 7  # a token that does not occur in the counted half
    band = band_of(grids, 9)
    assert band is not None
    assert (band.frequent, band.neighbour) == pytest.approx(naive_band(grids))
    assert band.neighbour > band.frequent


def test_stripes_give_all_away_and_noise_nothing() -> None:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 16, (400, 6, 1))
    stripes, noise = np.repeat(rows, 6, axis=2), generator.integers(0, 16, (400, 6, 6))
    striped, noisy = band_of(stripes, 16), band_of(noise, 16)
    assert striped is not None
    assert noisy is not None
    assert striped.neighbour == pytest.approx(0.5 + 0.5 / 16, abs=0.02), "known along the stripe, unknown across"
    assert noisy.neighbour == pytest.approx(1 / 16, abs=0.01)


def test_without_neighbours_or_other_images_there_is_none() -> None:
    assert band_of(np.zeros((9, 1, 4), int), 3) is None
    assert band_of(np.zeros((1, 4, 4), int), 3) is None


def test_what_is_usual_leaking_and_said() -> None:
    band = AccuracyBand(0.05, 0.3)
    assert band.expected_range == pytest.approx((0.15, 0.6))
    assert band.leaking == pytest.approx(0.93)
    assert band.outcome_message(0.2).endswith("15 to 60 % (within).")
    assert "below it" in band.outcome_message(0.1)
    assert "above it" in band.outcome_message(0.7)
    assert AccuracyBand(0.6, 0.7).expected_range == pytest.approx((0.6, 0.97))
    assert AccuracyBand(0.6, 0.7).outcome_message(0.98).endswith("(above it).")
    assert AccuracyBand(1.0, 1.0).leaking == 1.0


def test_a_run_that_ends_below_its_band_is_warned_of(tmp_path: Path, store, capsys, monkeypatch) -> None:
    """The report of such a run does not say "No warnings"."""
    band = AccuracyBand(0.5, 0.9)
    monkeypatch.setattr(signs, "stored_band", lambda *_: band)
    settings, run = tiny_settings(training__steps=1, training__warmup_steps=0), RunDirectory(tmp_path)
    tiny_trainer(tmp_path, store, settings).run()
    words = band.outcome_message(run.read_metrics()[-1]["token_accuracy"])
    assert "below it" in words
    (warning,) = [line for line in read_warnings(run) if line["name"] == "below_band"]
    assert warning["message"] == words
    assert f"WARNING at step 1: {words}" in " ".join(capsys.readouterr().err.split())


def test_a_run_says_what_to_expect_and_how_it_ended(tmp_path: Path, store, capsys) -> None:
    settings = tiny_settings()

    def trainer() -> PreTraining:
        return tiny_trainer(tmp_path, store, settings)

    trainer().run()
    band = stored_band(store, tiny_source())
    assert band is not None
    told = capsys.readouterr().err
    trainer().run()
    assert "Token accuracy" not in capsys.readouterr().err, "where nothing is left to do"
    assert told.count(band.expectation_message()) == 1
    (last,) = [line for line in told.splitlines() if line.startswith("Token accuracy at the end: ")]
    accuracy = RunDirectory(tmp_path).read_metrics()[-1]["token_accuracy"]
    assert last == band.outcome_message(accuracy)
