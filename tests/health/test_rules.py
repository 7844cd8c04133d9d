from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mapet.engine.callbacks import LogPoint
from mapet.health.accuracy_band import AccuracyBand
from mapet.health.fixed_batch import TokenSigns
from mapet.health.rules import Rules, RunFacts
from mapet.health.token_floor import TokenFloor

COURSE = RunFacts(total_steps=1000, warmup_steps=50, peak_lr=1e-3, clip_norm=3.0, vocab_size=100, log_every=10)
FLOOR = TokenFloor(entropy=4.0, accuracy=0.1, entropy_by_position=3.6)
SOUND = {"blocks.0": (0.01, 1.0), "blocks.1": (0.01, 1.0), "head": (0.02, 1.0), "patch_embed": (0.01, 1.0)}


def evaluate(rules: Rules, step: int, loss: float, norms=None, signs=None, floor=FLOOR, rate=1e-3, gradient=1.0, **scalars):
    entry = {"step": step, "loss": loss, "gradient_norm": gradient}
    return rules.warnings(LogPoint(step, rate, entry), scalars, SOUND if norms is None else norms, signs, floor)


def course_of(losses: list[float], course: RunFacts = COURSE, **others):
    rules = Rules(course)
    return [evaluate(rules, 10 * number, loss, **others) for number, loss in enumerate(losses, 1)]


def raised(verdicts: dict) -> set[str]:
    return {name for name, message in verdicts.items() if message is not None}


def test_a_falling_loss_is_sound() -> None:
    found = course_of([4.6 * 0.98**number for number in range(40)], **{"effective_rank/patches": 9.0})
    assert set().union(*map(raised, found)) == set()
    assert {"clipped", "diverging", "frozen", "small_update", "large_update", "sluggish", "collapsed"} == found[-1].keys()


def test_the_deadline_is_a_tenth_of_the_run_behind_the_warm_up_within_limits() -> None:
    deadlines = [replace(COURSE, total_steps=total).deadline for total in (300, 5000, 187_000)]
    assert deadlines == [150, 550, 1050]


def test_a_loss_above_that_of_a_blind_guess() -> None:
    found = course_of([4.7, 4.9, 4.9, 4.9])
    assert [raised(verdicts) for verdicts in found] == [set(), set(), set(), {"diverging"}]
    assert "The loss is 4.9; a blind guess among 100 tokens has 4.61. The learning rate" in found[-1]["diverging"]
    assert raised(course_of([4.7, 4.9, 4.9, 4.9], floor=None)[-1]) == set()


@pytest.mark.parametrize(("floor", "rise"), [(FLOOR, 1.1), (None, 1.5)])
def test_a_loss_that_rises(floor: TokenFloor | None, rise: float) -> None:
    for factor, expected in ((rise - 0.02, set()), (rise + 0.02, {"diverging"})):
        found = course_of([3.5, 3.0, 3.0, 3.0, *[3.0 * factor] * 3], floor=floor)
        assert raised(found[-1]) == expected
    assert "it was 3 and is" in found[-1]["diverging"]
    assert course_of([3.5, 3.0, 3.0, 3.0, *[3.0 * factor] * 3, 3, 3, 3], floor=floor)[-1]["diverging"] is None


def test_a_spike_is_one_entry_far_above_those_before() -> None:
    found = course_of([2.0, 2.0, 2.0, 3.1, 2.0])
    assert [("spike" in verdicts) for verdicts in found] == [False, False, False, True, False]
    assert "jumped from 2 to 3.1" in found[3]["spike"]
    assert "spike" not in course_of([2.0, 2.0, 2.0, 2.9])[-1]


def test_a_gradient_that_is_always_clipped() -> None:
    assert "clipped" in raised(course_of([3.0] * 10, gradient=31.0)[-1])
    assert "clipped" not in raised(course_of([3.0] * 9, gradient=31.0)[-1])
    assert "clipped" not in raised(course_of([3.0] * 10, gradient=29.0)[-1])
    assert "clipped" not in raised(course_of([3.0] * 10, replace(COURSE, clip_norm=None), gradient=31.0)[-1])


def test_parts_that_stand_still_are_named_together() -> None:
    still = {**SOUND, "blocks.1": (0.0, 1.0), "patch_embed": (0.0, 1.0)}
    assert "The weights of block 1, patch embed did not move" in evaluate(Rules(COURSE), 10, 3.0, still)["frozen"]
    still["blocks.0"] = (0.0, 1.0)
    assert "The weights of patch embed, all 2 blocks did not" in evaluate(Rules(COURSE), 10, 3.0, still)["frozen"]
    assert "frozen" not in evaluate(Rules(COURSE), 10, 3.0, still, rate=0.0)


def test_the_size_of_a_step() -> None:
    large = {**SOUND, "head": (0.11, 1.0)}
    assert "weights of head by up to 11%" in evaluate(Rules(COURSE), 60, 3.0, large)["large_update"]
    assert "large_update" not in evaluate(Rules(COURSE), 50, 3.0, large)
    small = {**SOUND, "head": (0.9e-6, 1.0)}
    assert "weights of head by less than a millionth" in evaluate(Rules(COURSE), 60, 3.0, small)["small_update"]
    late = evaluate(Rules(COURSE), 60, 3.0, {**SOUND, "head": (0.9e-6, 1.0)}, rate=1e-4)
    assert late["small_update"] is None  # ten times as much at the peak


def test_a_loss_that_has_not_come_half_the_way_to_the_frequencies() -> None:
    middle = (math.log(100) + 3.6) / 2
    assert raised(course_of([middle + 0.02] * 15)[-1]) == {"sluggish"}
    assert raised(course_of([middle - 0.02] * 15)[-1]) == set()
    assert "sluggish" not in course_of([middle + 0.02] * 14)[-1]
    assert "too high (training.lr is 0.001): try a tenth" in course_of([4.5] * 15)[-1]["sluggish"]
    tiny = dict.fromkeys(SOUND, (1e-4, 1.0))
    assert "too low (training.lr is 0.001): try ten times" in course_of([4.5] * 15, norms=tiny)[-1]["sluggish"]
    even = TokenFloor(entropy=4.59, accuracy=0.01, entropy_by_position=None)
    assert raised(course_of([4.6] * 15, floor=even)[-1]) == set()  # too short a way to tell


def test_other_losses_must_have_fallen_a_little() -> None:
    assert raised(course_of([2.0] * 15, floor=None)[-1]) == {"sluggish"}
    assert raised(course_of([2.0] * 3 + [1.9] * 12, floor=None)[-1]) == set()


def test_predictions_that_owe_nothing_to_the_image() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (30, 30))
    blind, seeing = TokenSigns(3 + noise, None), TokenSigns(3 + noise - np.eye(30), None)
    assert "fit the tokens of other images as well" in evaluate(Rules(COURSE), 150, 3.0, signs=blind)["blind"]
    assert evaluate(Rules(COURSE), 150, 3.0, signs=seeing)["blind"] is None
    assert "blind" not in evaluate(Rules(COURSE), 140, 3.0, signs=blind)


def test_a_collapse_is_measured_against_two_dimensions_and_the_own_past() -> None:
    rules = Rules(COURSE)
    name = "effective_rank/patches"
    assert "collapsed" not in evaluate(rules, 100, 3.0, **{name: 1.0})
    assert evaluate(rules, 200, 3.0, **{name: 60.0})["collapsed"] is None
    assert evaluate(rules, 300, 3.0, **{name: 6.1})["collapsed"] is None
    assert "span 5.9 effective dimensions, at best it was 60" in evaluate(rules, 400, 3.0, **{name: 5.9})["collapsed"]
    assert raised(evaluate(Rules(COURSE), 200, 3.0, **{name: 1.9})) == {"collapsed"}


def test_a_continued_run_remembers() -> None:
    entries = [{"step": 10 * number, "loss": 3.0, "gradient_norm": 31.0, "effective_rank/patches": 60.0} for number in range(1, 30)]
    found = evaluate(Rules(COURSE, entries), 300, 3.0, gradient=31.0, **{"effective_rank/patches": 5.0})
    assert raised(found) == {"clipped", "collapsed"}
    rises = evaluate(Rules(COURSE, [*entries, *({"step": 300, "loss": 3.4},) * 2]), 310, 3.4)
    assert raised(rises) == {"diverging"}


def test_targets_that_are_given_away() -> None:
    band = AccuracyBand(frequent=0.05, neighbour=0.3)

    def at(accuracy: float):
        entry = {"step": 60, "loss": 0.1, "gradient_norm": 1.0, "token_accuracy": accuracy}
        return Rules(COURSE).warnings(LogPoint(60, 1e-3, entry), {}, SOUND, None, FLOOR, band)["leaking"]

    assert at(0.92) is None
    assert "94.0%, and the best guess from a neighbour is right 30.0%" in at(0.94)
    assert "leaking" not in evaluate(Rules(COURSE), 60, 0.1), "where no tokens are predicted"
