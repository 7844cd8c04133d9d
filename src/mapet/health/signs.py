"""Vital signs: cheap and early indicators of the health of a pre-training.

At log points, never in a step: how far a step moves each part of the network; what the loss gains over the token frequencies; and,
every hundred steps or more, on a few fixed images: the effective rank of the features, the information of predictions about their
image, and the accuracy by rank in the permutation. `rules.py` evaluates them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mapet.engine.callbacks import LogPoint, Monitor, Observation
from mapet.engine.log import OF_EVERY_ENTRY
from mapet.health.accuracy_band import AccuracyBand, stored_band
from mapet.health.context import PretrainContext
from mapet.health.fixed_batch import SHOWN_IMAGES, FixedBatch, TokenSigns, feature_ranks, token_signs
from mapet.health.rules import Rules, RunFacts
from mapet.health.token_floor import RunningCounts, TokenFloor, count_stored, floor_of
from mapet.health.updates import UpdateMeter, ratios_by_group
from mapet.models.backbone import image_size
from mapet.objectives.base import TokenObjective
from mapet.runtime.progress import say, say_fact

STEPS_BETWEEN_UPDATES = 10
STEPS_BETWEEN_EVALUATIONS = 100
SHARE_OF_TIME = 0.01
_COST_OF_AN_IMAGE = 0.7  # two forward passes without gradient, in training steps on one image


class VitalSigns(Monitor[PretrainContext]):
    """Observes every run by default.

    Args:
        updates_every: Steps between two measurements of how far a step moves the weights, at least.
        evaluate_every: Steps between two passes of the fixed images, at least.
        share_of_time: Of the training, which these passes may cost.
    """

    def __init__(
        self,
        updates_every: int = STEPS_BETWEEN_UPDATES,
        evaluate_every: int = STEPS_BETWEEN_EVALUATIONS,
        share_of_time: float = SHARE_OF_TIME,
    ) -> None:
        self._updates_every, self._evaluate_every, self._share_of_time = updates_every, evaluate_every, share_of_time

    def begin(self, run: PretrainContext) -> None:
        """Counts the tokens; nothing is shown to the network yet."""
        self.run = run
        settings, objective, store = run.settings, run.objective, run.tokens.store
        log_every = settings.mechanics.log_every
        self._updates_every = log_every * math.ceil(self._updates_every / log_every)
        self._evaluate_every = log_every * math.ceil(self._evaluate_every / log_every)
        cost = _COST_OF_AN_IMAGE * min(SHOWN_IMAGES, len(run.source))
        self._stretch = math.ceil(cost / (self._share_of_time * self._evaluate_every * settings.training.batch_size))
        self._meter = UpdateMeter(objective)
        self._fixed_batch: FixedBatch | None = None
        self._running, self._floor = None, None
        self._band: AccuracyBand | None = None
        if isinstance(objective, TokenObjective):
            if store is not None:
                self._floor = floor_of(count_stored(store, run.source))
                self._band = stored_band(store, run.source)
            else:
                self._running = RunningCounts(objective.num_patches, objective.vocab_size, run.device)
        if self._band is not None:
            say_fact(self._band.expectation_message())
        self._rules = Rules(RunFacts.of(run), run.directory.read_metrics())

    def before_step(self, step: int, batch: Any) -> None:
        """Keeps the weights where this step is measured."""
        if (step + 1) % self._updates_every == 0:
            self._meter.before_step()
        if self._running is not None and batch.token_ids is not None:
            self._running.add(batch.token_ids)

    def observe(self, point: LogPoint) -> Observation:
        """What is due at this step."""
        scalars: dict[str, float] = {}
        norms = self._meter.read() if self._meter.pending else {}
        scalars |= {f"update/{group}": ratio for group, ratio in ratios_by_group(norms).items()}
        signs = None
        if self._is_evaluated(point.step):
            if self._running is not None:
                self._floor = floor_of(self._running.read())
            measured, signs = self._evaluate_fixed_batch()
            scalars |= measured
        floor = self._floor if is_token_loss(point.entry) else None
        if floor is not None:
            scalars["bits_gained"] = floor.bits_gained(point.entry["loss"])
            scalars["accuracy_gained"] = point.entry["token_accuracy"] - floor.accuracy
        warnings = self._rules.warnings(point, scalars, norms, signs, floor, self._band)
        if self._band is not None and point.step == self.run.total_steps and "token_accuracy" in point.entry:
            warnings |= self._at_the_end(point.entry["token_accuracy"])
        note = f"{scalars['bits_gained']:+.2f} bits" if "bits_gained" in scalars else ""
        return Observation(scalars, warnings, note)

    def state(self) -> dict[str, Tensor]:
        """The tokens counted so far, and the floor of when they were last read."""
        if self._running is None:
            return {}
        floor = {} if self._floor is None else {"floor": self._floor.as_tensor()}
        return {"counts": self._running.total(), **floor}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continues counting."""
        if self._running is not None:
            self._running.restore(state["counts"])
            self._floor = TokenFloor.of_tensor(state["floor"]) if "floor" in state else None

    def _at_the_end(self, accuracy: float) -> dict[str, str | None]:
        """What the last accuracy means: words for the terminal, and a warning where it lies below the band."""
        assert self._band is not None
        words = self._band.outcome_message(accuracy)
        if accuracy < self._band.expected_range[0]:
            return {"below_band": words}
        say(words)
        return {"below_band": None}

    def _is_evaluated(self, step: int) -> bool:
        """Twice early on, then as seldom as the batch size demands for it to cost at most one hundredth of the time."""
        evaluations, rest = divmod(step, self._evaluate_every)
        return not rest and (evaluations in (1, 2) or evaluations % self._stretch == 0)

    def _evaluate_fixed_batch(self) -> tuple[dict[str, float], TokenSigns | None]:
        """What the network makes of the fixed images."""
        run = self.run
        self._fixed_batch = self._fixed_batch or FixedBatch.load(run)
        if len(self._fixed_batch) < 2:
            return {}, None
        patches, images = feature_ranks(run.objective.backbone, self._fixed_batch, run.settings, run.device)
        scalars = {"effective_rank/patches": patches, "effective_rank/images": images}
        signs = None
        if run.objective.view_size == image_size(run.objective.backbone)[0]:
            signs = token_signs(run.objective, self._fixed_batch, run.settings, run.device)
        if signs is not None:
            scalars["bits_from_image"] = signs.gain / math.log(2)
            scalars |= signs.rank_scalars()
        return scalars, signs


def is_token_loss(entry: Mapping[str, float]) -> bool:
    """Whether the objective reports the token accuracy and no further part of its loss."""
    return "token_accuracy" in entry and not entry.keys() - OF_EVERY_ENTRY - {"token_accuracy"}
