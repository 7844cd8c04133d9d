"""The linear probe: one linear layer on frozen features, or one on every layer of the backbone.

Every pair of a layer and a learning rate is a candidate. All candidates are trained at once; where there are several, one is chosen
on a part of the training images that its twin has not learned from, and the layer that is judged has learned from all of them. Test
images are used only after all choices, except for a published protocol that chose on them (`choose="test"`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mapet.data.views import View
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.outcomes import classified
from mapet.evaluation.probes.images import AugmentedImages, CachedImages, ProbeImages
from mapet.evaluation.probes.linear_fit import FittedProbe, choose, train
from mapet.evaluation.probes.linear_settings import LinearSettings
from mapet.evaluation.probes.representations import Describe, describe_all, evaluation_view, every_layer, last_layer
from mapet.evaluation.protocol import Metrics


@dataclass(frozen=True, kw_only=True)
class LinearProbe(LinearSettings):
    """A linear layer on frozen features; see `LinearSettings` for the settings."""

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """Accuracies of the candidate that was chosen; in the details, of all that there were."""
        if self.choose == "test":
            return self._evaluate_optimistically(frozen)
        fitted, validation_split = self.fit(frozen)
        features, labels = self._test_part(frozen)
        scores = fitted.scores(features)
        details = fitted.describe_all(features, labels, validation_split)
        return Metrics.of(classified(scores, labels), {"chosen": fitted.describe(*fitted.chosen)} | details)

    def fit(
        self, frozen: FrozenBackbone, after_epoch: Callable[[int, FittedProbe], None] | None = None
    ) -> tuple[FittedProbe, Tensor | None]:
        """Trains all candidates and chooses one, without the test images.

        Args:
            frozen: The backbone and its training images.
            after_epoch: Called with the epochs done and the probe as it stands.

        Returns:
            The probe, and the share (L, R) that every candidate got right on the held-out part; None where there was one candidate.
        """
        images = self._images(frozen)
        fitted, twin = train(self, images, frozen, after_epoch)
        return choose(fitted, twin, images) if twin is not None else (fitted, None)

    def _evaluate_optimistically(self, frozen: FrozenBackbone) -> Metrics:
        """The best of any layer after any epoch on the test images."""
        features, labels = self._test_part(frozen)
        best: dict[str, Any] = {"top1": -1.0}

        def keep_best(epoch: int, fitted: FittedProbe) -> None:
            right = fitted.evaluate(features, labels)[0]
            if float(right.max()) > best["top1"]:
                fitted.choose(int(right.argmax()))
                outcomes = classified(fitted.scores(features), labels)
                best.update(top1=float(right.max()), outcomes=outcomes, chosen={**fitted.describe(*fitted.chosen), "epoch": epoch})

        fitted, _ = self.fit(frozen, keep_best)
        details = {"chosen": best["chosen"], "chosen_on": "test"} | fitted.describe_all(features, labels, None)
        return Metrics.of(best["outcomes"], details)

    def _images(self, frozen: FrozenBackbone) -> ProbeImages:
        several = self.layers == "every" or len(self.candidates) > 1
        share = self.held_out_share if several and self.choose == "held_out" else 0.0
        if self.augment:
            return AugmentedImages(frozen, self._describe(frozen), self._view(frozen), share, self.seed)
        return CachedImages(*self._features(frozen, "train"), share, self.seed)

    def _test_part(self, frozen: FrozenBackbone) -> tuple[Tensor, Tensor]:
        return self._features(frozen, "test")

    def _features(self, frozen: FrozenBackbone, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Features (n, L, F) and labels (n,), from what all protocols share where that is the same."""
        if self.layers == "last" and self.crop_fraction == 1:
            shared = frozen.train_features if part == "train" else frozen.test_features
            return shared.pooled(self.pool)[:, None], shared.labels
        source, title = (frozen.train, "training") if part == "train" else (frozen.test, "test")
        return describe_all(frozen, source, self._view(frozen), self._describe(frozen), title)

    def _view(self, frozen: FrozenBackbone) -> View:
        return evaluation_view(frozen.spec.image_size, self.crop_fraction)

    def _describe(self, frozen: FrozenBackbone) -> Describe:
        return (last_layer if self.layers == "last" else every_layer)(frozen, self.pool)
