"""The linear probe: one linear layer on frozen features, or one on every layer of the backbone.

Every pair of a layer and a learning rate is a candidate. All candidates are trained at once; where there are several, one is chosen
on a part of the training images that its twin has not learned from, and the layer that is judged has learned from all of them. Test
images are looked at when everything is chosen, except where that is what was published (`choose="test"`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from mapet.data.views import View
from mapet.errors import SettingsError
from mapet.evaluation.held_out import candidates
from mapet.evaluation.outcomes import classified
from mapet.evaluation.probes.images import AugmentedImages, CachedImages, ProbeImages
from mapet.evaluation.probes.linear_fit import FittedProbe, choose, train
from mapet.evaluation.probes.linear_heads import Rate
from mapet.evaluation.probes.representations import Describe, describe_all, evaluation_view, every_layer, last_layer
from mapet.evaluation.protocol import Findings, Protocol
from mapet.evaluation.subject import Subject
from mapet.evaluation.supervised.length import note_if_longer

_Count = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[float, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Protocol):
    """Settings of all presets (`mapet protocols linear`).

    Args:
        pool: "mean", "cls" or "both".
        layers: "last", behind the final norm, or "every" raw block output with a linear layer of its own.
        augment: Random resized crops and flips in every epoch; otherwise features are extracted once.
        crop_fraction: Share of the shorter side that is seen of a test image; 1 is the view of the pre-training.
        normalise: "standardise" by mean and deviation of the training images, "batch_norm" without affine part, or "none".
        optimizer: "adamw" or "lars".
        epochs: Passes over the training images.
        min_steps: At least so many steps are taken, in more epochs where there are few images.
        warmup_epochs: Linear, from 0.
        schedule: Whether the cosine to 0 moves with every "step" or every "epoch".
        batch_size: Images a step; all of them where there are fewer.
        lr: At its highest, absolute; several are candidates.
        weight_decay: On the weight and not on the bias; several are candidates.
        init_std: Deviation of the weights at the start.
        choose: Among several candidates, by a "held_out" part of the training images; or, optimistic, as the best layer and
            epoch on "test".
        held_out_share: Of every class.
        seed: Of order, augmentation, start and held-out part.

    Raises:
        SettingsError: Settings do not go together.
    """

    name: ClassVar[str] = "linear"
    version: ClassVar[int] = 2

    layers: Literal["last", "every"] = "last"
    augment: bool = False
    crop_fraction: _Share = 1.0
    normalise: Literal["standardise", "batch_norm", "none"] = "standardise"
    optimizer: Literal["adamw", "lars"] = "adamw"
    epochs: _Count = 50
    min_steps: _Count = 1000
    warmup_epochs: _NotNegative = 0.0
    schedule: Literal["step", "epoch"] = "step"
    batch_size: _Count = 1024
    lr: _Positive | tuple[_Positive, ...] = 4e-3
    weight_decay: _NotNegative | tuple[_NotNegative, ...] = 1e-4
    init_std: _NotNegative = 0.0
    choose: Literal["held_out", "test"] = "held_out"
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "lars" and self.layers == "every":
            raise SettingsError("LARS scales a step by the norm of one linear layer. Use optimizer=adamw with layers=every.")
        if self.normalise == "batch_norm" and self.batch_size < 2:
            raise SettingsError("batch_norm compares the images of a batch, and batch_size is 1; allowed with it: 2 or more.")

    @property
    def rates(self) -> list[Rate]:
        """All pairs of a learning rate and a weight decay."""
        return [Rate(*pair) for pair in product(candidates(self.lr), candidates(self.weight_decay))]

    @property
    def with_random(self) -> bool:
        """Not where every epoch passes the backbone again."""
        return not self.augment

    def note(self, train_images: int) -> str:
        """Says so where few images are passed more often."""
        return note_if_longer(train_images, self.batch_size, self.epochs, self.min_steps, self.warmup_epochs)

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
