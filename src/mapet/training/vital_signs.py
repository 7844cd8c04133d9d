"""Vital signs: what tells early whether a pre-training is healthy, for next to nothing.

At log points, never in a step: how far a step moves each part of the network; what the loss gains over the token frequencies; and,
every hundred steps or more, on a few fixed images: the effective rank of the features, what predictions owe to their image, and
the accuracy by rank in the permutation. `vital_rules.py` judges them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mapet.models.backbone import image_size
from mapet.objectives.base import TokenObjective
from mapet.runtime.progress import say
from mapet.training.log import OF_EVERY_ENTRY
from mapet.training.monitor import Moment, Monitor, Observation
from mapet.training.vital_band import AccuracyBand, stored_band
from mapet.training.vital_batch import SHOWN_IMAGES, FixedBatch, TokenSigns, feature_ranks, token_signs
from mapet.training.vital_floor import RunningCounts, TokenFloor, count_stored, floor_of
from mapet.training.vital_rules import Course, Rules
from mapet.training.vital_updates import UpdateMeter, ratios_by_group

if TYPE_CHECKING:
    from mapet.training.trainer import Trainer

STEPS_BETWEEN_UPDATES = 10
STEPS_BETWEEN_LOOKS = 100
_SHARE_OF_TIME = 0.01
_COST_OF_AN_IMAGE = 0.7  # two forward passes without gradient, in training steps on one image


class VitalSigns(Monitor):
    """Watches every run unasked."""

    def begin(self, trainer: Trainer) -> None:
        """Counts the tokens; nothing is shown to the network yet."""
        self.trainer, self.objective = trainer, trainer.objective
        settings = trainer.settings
        log_every = settings.mechanics.log_every
        self._updates_every = log_every * math.ceil(STEPS_BETWEEN_UPDATES / log_every)
        self._looks_every = log_every * math.ceil(STEPS_BETWEEN_LOOKS / log_every)
        per_look = _COST_OF_AN_IMAGE * min(SHOWN_IMAGES, len(trainer.source))
        self._stretch = math.ceil(per_look / (_SHARE_OF_TIME * self._looks_every * settings.training.batch_size))
        self._meter = UpdateMeter(trainer.objective)
        self._shown: FixedBatch | None = None
        self._running, self._floor = None, None
        self._band: AccuracyBand | None = None
        if isinstance(trainer.objective, TokenObjective):
            if trainer.store is not None:
                self._floor = floor_of(count_stored(trainer.store, trainer.source))
                self._band = stored_band(trainer.store, trainer.source)
            elif trainer.tokenizer is not None:
                shape = trainer.objective.num_patches, trainer.objective.vocab_size
                self._running = RunningCounts(*shape, trainer.device)
        if self._band is not None and trainer.first_step < trainer.total_steps:
            say(self._band.promise())
        self._rules = Rules(Course.of(trainer), trainer.run_directory.read_metrics())

    def before_step(self, step: int, token_ids: Tensor | None) -> None:
        """Keeps the weights where this step is measured."""
        if (step + 1) % self._updates_every == 0:
            self._meter.before_step()
        if self._running is not None and token_ids is not None:
            self._running.add(token_ids)

    def observe(self, moment: Moment) -> Observation:
        """What is due at this step."""
        scalars: dict[str, float] = {}
        norms = self._meter.read() if self._meter.pending else {}
        scalars |= {f"update/{group}": ratio for group, ratio in ratios_by_group(norms).items()}
        signs = None
        if self._is_looked_at(moment.step):
            if self._running is not None:
                self._floor = floor_of(self._running.read())
            looked, signs = self._look()
            scalars |= looked
        floor = self._floor if is_token_loss(moment.entry) else None
        if floor is not None:
            scalars["bits_gained"] = floor.bits_gained(moment.entry["loss"])
            scalars["accuracy_gained"] = moment.entry["token_accuracy"] - floor.accuracy
        verdicts = self._rules.judge(moment, scalars, norms, signs, floor, self._band)
        if self._band is not None and moment.step == self.trainer.total_steps and "token_accuracy" in moment.entry:
            verdicts |= self._at_the_end(moment.entry["token_accuracy"])
        return Observation(scalars, verdicts)

    def state(self) -> dict[str, Tensor]:
        """The tokens counted so far, and what was made of them when they were last read."""
        if self._running is None:
            return {}
        floor = {} if self._floor is None else {"floor": self._floor.as_tensor()}
        return {"counts": self._running.counts, **floor}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on counting."""
        if self._running is not None:
            self._running.counts.copy_(state["counts"])
            self._floor = TokenFloor.of_tensor(state["floor"]) if "floor" in state else None

    def _at_the_end(self, accuracy: float) -> dict[str, str | None]:
        """What the last accuracy means: words for the terminal, and a warning where it lies below the band."""
        assert self._band is not None
        words = self._band.verdict(accuracy)
        if accuracy < self._band.usual[0]:
            return {"below_band": words}
        say(words)
        return {"below_band": None}

    def _is_looked_at(self, step: int) -> bool:
        """Twice early on, then as seldom as the batch size demands for it to cost at most one hundredth of the time."""
        looks, rest = divmod(step, self._looks_every)
        return not rest and (looks in (1, 2) or looks % self._stretch == 0)

    def _look(self) -> tuple[dict[str, float], TokenSigns | None]:
        """What the network makes of the fixed images."""
        trainer = self.trainer
        self._shown = self._shown or FixedBatch.load(trainer)
        if len(self._shown) < 2:
            return {}, None
        patches, images = feature_ranks(trainer.objective.backbone, self._shown, trainer.settings, trainer.device)
        scalars = {"effective_rank/patches": patches, "effective_rank/images": images}
        signs = None
        if trainer.objective.view_size == image_size(trainer.objective.backbone)[0]:
            signs = token_signs(trainer.objective, self._shown, trainer.settings, trainer.device)
        if signs is not None:
            scalars["bits_from_image"] = signs.gain / math.log(2)
            scalars |= signs.rank_scalars()
        return scalars, signs


def is_token_loss(entry: Mapping[str, float]) -> bool:
    """Whether the objective reports the token accuracy and no further part of its loss."""
    return "token_accuracy" in entry and not entry.keys() - OF_EVERY_ENTRY - {"token_accuracy"}
