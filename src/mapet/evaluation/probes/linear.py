"""The linear probe: one linear layer on frozen features, or one on every layer of the backbone.

Every pair of a layer and a learning rate is a candidate. All candidates are trained at once; where there are several, one is chosen
on a part of the training images that its twin has not learned from, and the layer that is judged has learned from all of them. Test
images are looked at when everything is chosen, except where that is what was published (`choose="test"`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mapet.data.views import View
from mapet.evaluation.outcomes import classified
from mapet.evaluation.probes.images import AugmentedImages, CachedImages, ProbeImages
from mapet.evaluation.probes.linear_fit import FittedProbe, choose, train
from mapet.evaluation.probes.linear_settings import LinearSettings
from mapet.evaluation.probes.representations import Describe, describe_all, evaluation_view, every_layer, last_layer
from mapet.evaluation.protocol import Findings
from mapet.evaluation.subject import Subject


@dataclass(frozen=True, kw_only=True)
class LinearProbe(LinearSettings):
    """A linear layer on frozen features; see `LinearSettings` for the settings."""

    def judge(self, subject: Subject) -> Findings:
        """Accuracies of the candidate that was chosen; in the details, of all that there were."""
        if self.choose == "test":
            return self._judge_optimistically(subject)
        fitted, held_out = self.fit(subject)
        features, labels = self._test_part(subject)
        scores = fitted.scores(features)
        found = fitted.describe_all(features, labels, held_out)
        return Findings.of(classified(scores, labels), {"chosen": fitted.describe(*fitted.chosen)} | found)

    def fit(
        self, subject: Subject, after_epoch: Callable[[int, FittedProbe], None] | None = None
    ) -> tuple[FittedProbe, Tensor | None]:
        """Trains all candidates and chooses one, without a look at the test images.

        Args:
            subject: The backbone and its training images.
            after_epoch: Called with the epochs done and the probe as it stands.

        Returns:
            The probe, and the share (L, R) that every candidate got right on the held-out part; None where there was one candidate.
        """
        images = self._images(subject)
        fitted, twin = train(self, images, subject, after_epoch)
        return choose(fitted, twin, images) if twin is not None else (fitted, None)

    def _judge_optimistically(self, subject: Subject) -> Findings:
        """The best that any layer reached after any epoch on the very images that are judged."""
        features, labels = self._test_part(subject)
        best: dict[str, Any] = {"top1": -1.0}

        def look(epoch: int, fitted: FittedProbe) -> None:
            right = fitted.judge(features, labels)[0]
            if float(right.max()) > best["top1"]:
                fitted.choose(int(right.argmax()))
                outcomes = classified(fitted.scores(features), labels)
                best.update(top1=float(right.max()), outcomes=outcomes, chosen={**fitted.describe(*fitted.chosen), "epoch": epoch})

        fitted, _ = self.fit(subject, look)
        details = {"chosen": best["chosen"], "chosen_on": "test"} | fitted.describe_all(features, labels, None)
        return Findings.of(best["outcomes"], details)

    def _images(self, subject: Subject) -> ProbeImages:
        several = self.layers == "every" or len(self.rates) > 1
        share = self.held_out_share if several and self.choose == "held_out" else 0.0
        if self.augment:
            return AugmentedImages(subject, self._describe(subject), self._view(subject), share, self.seed)
        return CachedImages(*self._features(subject, "train"), share, self.seed)

    def _test_part(self, subject: Subject) -> tuple[Tensor, Tensor]:
        return self._features(subject, "test")

    def _features(self, subject: Subject, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Features (n, L, F) and labels (n,), from what all protocols share where that is the same."""
        if self.layers == "last" and self.crop_fraction == 1:
            shared = subject.train_features if part == "train" else subject.test_features
            return shared.pooled(self.pool)[:, None], shared.labels
        source, title = (subject.train, "training") if part == "train" else (subject.test, "test")
        return describe_all(subject, source, self._view(subject), self._describe(subject), title)

    def _view(self, subject: Subject) -> View:
        return evaluation_view(subject.recipe.image_size, self.crop_fraction)

    def _describe(self, subject: Subject) -> Describe:
        return (last_layer if self.layers == "last" else every_layer)(subject, self.pool)
