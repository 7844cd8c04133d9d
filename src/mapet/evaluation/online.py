"""The online probe: k-NN and a linear probe on labelled images while a backbone is being pre-trained.

A part of the training images is used with labels, the same in every run on them: four fifths for training, one fifth for testing.
They are chosen by content, so that copies of an image are on one side. The test split is never used. The backbone is copied
first: pre-training goes on bitwise as it would have without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mapet.config.settings import PretrainSettings
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, subset
from mapet.engine.callbacks import LogPoint, Monitor, Observation
from mapet.engine.parallel import whole_state
from mapet.errors import DataError, MapetError
from mapet.evaluation.frozen_backbone import FrozenBackbone, check_labels
from mapet.evaluation.presets import protocol_of
from mapet.evaluation.protocol import Protocol
from mapet.health.context import PretrainContext
from mapet.models.weights import load_strictly
from mapet.pretraining.pretrain import backbone_spec
from mapet.runtime.progress import format_seconds, say
from mapet.runtime.seeding import seeded_globally
from mapet.token_store.keys import image_keys

PROBED_IMAGES = 2000
HELD_OUT_SHARE = 0.2


class OnlineProbe(Monitor[PretrainContext]):
    """Evaluates the backbone every `mechanics.probe_every` epochs, at the next log point, and at the end.

    Args:
        settings: Of the run.
        protocols: What to measure; by default k-NN and a short linear probe. Their figures are comparable within runs on the same
            images, and not with those of `mapet evaluate`.
    """

    def __init__(self, settings: PretrainSettings, protocols: Sequence[Protocol] | None = None) -> None:
        self.settings = settings
        self.protocols = protocols or [protocol_of("knn"), protocol_of("linear", {"min_steps": 200, "epochs": 20})]

    def check(self, source: ImageSource) -> None:
        """Refuses images without labels.

        Raises:
            DataError: They are not suitable for a probe; the run is possible without it.
        """
        try:
            check_labels(source)
        except DataError as error:
            raise DataError(f"{error} Or leave out --probe-every: the pre-training itself needs no labels.") from None

    def begin(self, run: PretrainContext) -> None:
        """Chooses the images."""
        self.run, self._last = run, run.first_step
        self._period = max(1, round((self.settings.mechanics.probe_every or 1) * run.steps_per_epoch))
        self.train, self.validation = probe_parts(run.source)

    def observe(self, point: LogPoint) -> Observation:
        """Top-1 of every protocol, 0 to 1, and the seconds that it took, where a probe is due."""
        due = point.step // self._period > self._last // self._period or point.step == self.run.total_steps
        self._last = point.step
        if not due:
            return Observation()
        began = time.perf_counter()
        try:
            metrics = self._evaluate(point.step)
        except MapetError as error:
            say(f"No probe at step {point.step}: {error}")
            return Observation()
        seconds = time.perf_counter() - began
        summary = ", ".join(f"{name} {100 * figure:.1f} %" for name, figure in metrics.items())
        say(
            f"Probe at step {point.step}: {summary} of {len(self.validation)} held-out training images, {len(self.train)} to learn "
            f"from, {format_seconds(seconds)}."
        )
        return Observation({**{f"online/{name}": figure for name, figure in metrics.items()}, "online/seconds": seconds})

    def state(self) -> dict[str, Tensor]:
        """The step of the last check whether a probe is due."""
        return {"last": torch.tensor(self._last)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """A probe that was due between then and the stop is still due."""
        self._last = int(state["last"])

    def _evaluate(self, step: int) -> dict[str, float]:
        spec = backbone_spec(self.settings)
        backbone = spec.build()
        load_strictly(backbone, whole_state(self.run.objective.backbone))
        frozen = FrozenBackbone(
            f"step {step}",
            backbone.to(self.run.device),
            spec,
            self.train,
            self.validation,
            device=self.run.device,
            workers=self.settings.mechanics.workers,
            unreadable=UnreadableImages(len(self.train) + len(self.validation)),
        )
        with seeded_globally(self.settings.seed, "online probe"):
            values = {protocol.name: protocol.evaluate(frozen).values[protocol.metric] for protocol in self.protocols}
        return values


def probe_parts(source: ImageSource) -> tuple[ImageSource, ImageSource]:
    """At most `PROBED_IMAGES` images for training and testing, chosen by content alone.

    Raises:
        DataError: They are too few for both.
    """
    keys = image_keys(source)
    readable = np.array([index for index, key in enumerate(keys) if not key.startswith("?")], np.int64)
    order = np.argsort(np.array([keys[index][16:] for index in readable], str), kind="stable")
    indices = np.sort(readable[order[:PROBED_IMAGES]])
    validation = np.array([int(keys[index][8:16], 16) < HELD_OUT_SHARE * 2**32 for index in indices], bool)
    if validation.all() or not validation.any():
        raise DataError(
            f"{source.location} has {len(source)} images, too few for a training and a test part. Leave out --probe-every, "
            "or add images."
        )
    return subset(source, indices[~validation]), subset(source, indices[validation])
