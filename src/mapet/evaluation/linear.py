"""The linear probe: one linear layer on frozen features, or one on every layer of the backbone.

Every pair of a layer and a learning rate is a candidate. All candidates are trained at once; where there are several, one is chosen
on a part of the training images that its twin has not learned from, and the layer that is judged has learned from all of them. Test
images are looked at when everything is chosen, except where that is what was published (`choose="test"`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mapet.errors import NonFiniteLossError, SettingsError
from mapet.evaluation.linear_heads import LinearHeads, Rate, cosine, train_heads
from mapet.evaluation.metrics import accuracies
from mapet.evaluation.probe_images import AugmentedImages, CachedImages, ProbeImages
from mapet.evaluation.protocol import Findings, Protocol
from mapet.evaluation.representations import describe_all, evaluation_view, every_layer, last_layer
from mapet.evaluation.subject import Subject
from mapet.runtime.progress import progress


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
        min_steps: With cached features, at least so many steps are taken, in more epochs where there are few images.
        warmup_epochs: Linear, from 0.
        schedule: Whether the cosine to 0 moves with every "step" or every "epoch".
        batch_size: Images a step; all of them where there are fewer.
        lr: At its highest, absolute; several are candidates.
        weight_decay: On the weight and not on the bias; several are candidates.
        init_std: Deviation of the weights at the start.
        choose: Among several candidates, by a "held_out" part of the training images; or, optimistic, as the best layer and epoch on
            "test".
        held_out_share: Of every class.
        seed: Of order, augmentation, start and held-out part.

    Raises:
        SettingsError: Settings do not go together.
    """

    name: ClassVar[str] = "linear"
    version: ClassVar[int] = 2

    layers: Literal["last", "every"] = "last"
    augment: bool = False
    crop_fraction: float = 1.0
    normalise: Literal["standardise", "batch_norm", "none"] = "standardise"
    optimizer: Literal["adamw", "lars"] = "adamw"
    epochs: int = 50
    min_steps: int = 1000
    warmup_epochs: float = 0.0
    schedule: Literal["step", "epoch"] = "step"
    batch_size: int = 1024
    lr: float | tuple[float, ...] = 4e-3
    weight_decay: float | tuple[float, ...] = 1e-4
    init_std: float = 0.0
    choose: Literal["held_out", "test"] = "held_out"
    held_out_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "lars" and self.layers == "every":
            raise SettingsError("LARS scales a step by the norm of one linear layer. Use optimizer=adamw with layers=every.")
        for name, low, high in (("epochs", 1, None), ("batch_size", 1, None), ("held_out_share", 0, 1), ("warmup_epochs", 0, None)):
            value = getattr(self, name)
            if value < low or (high is not None and not low < value < high):
                limits = f"{low} or more" if high is None else f"between {low} and {high}"
                raise SettingsError(f"{name} is {value}; allowed: {limits}.")
        if not self.rates:
            raise SettingsError("lr or weight_decay is an empty list. Give at least one value.")

    @property
    def rates(self) -> list[Rate]:
        """All pairs of a learning rate and a weight decay."""
        return [Rate(*pair) for pair in product(values_of(self.lr), values_of(self.weight_decay))]

    def judge(self, subject: Subject) -> Findings:
        """Accuracies of the candidate that was chosen; in the details, of all that there were."""
        fitted = self.fit(subject)
        features, labels = _test_part(self, subject)
        features = fitted.normaliser(features)
        if fitted.best is not None:
            return _optimistic(fitted, subject.num_classes, labels)
        scores = fitted.heads.scores_of(features, *fitted.chosen)
        details = {"chosen": fitted.describe(*fitted.chosen)} | _candidates(fitted, features, labels)
        return Findings(accuracies(scores, labels, subject.num_classes), details)

    def fit(self, subject: Subject) -> FittedProbe:
        """Trains all candidates and chooses one; test images are not looked at, unless that is how it is chosen."""
        images = self._images(subject)
        normaliser = Normaliser(self, images).to(subject.device)
        first = next(images.batches(2, 1, self.seed))[0]
        count = 1 if images.held_out is None else 2
        size = (first.shape[1], first.shape[2], subject.num_classes)
        heads = [LinearHeads(self.rates, *size, self.init_std, self.seed).to(subject.device) for _ in range(count)]
        best = _Best(heads[0], _test_part(self, subject), normaliser) if self.choose == "test" else None
        self._train(subject, images, normaliser, heads, best)
        fitted = FittedProbe(normaliser, heads[0], best=best)
        if images.held_out is None:
            return fitted
        features, labels = images.held_out_part()
        right, losses = heads[1].judge(normaliser(features), labels)
        return FittedProbe(normaliser, heads[0], choose_best(right, losses), right)
