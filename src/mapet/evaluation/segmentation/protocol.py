"""Semantic segmentation (MaPeT, Tables 4 and 10): UperNet and the whole backbone learn, and the mean IoU is the figure.

    mapet evaluate segment RUN FOLDER                             a short training on small images
    mapet evaluate segment:base RUN ADE20K --device cuda          as published

In its folder it keeps checkpoints, from which the same command continues exactly, metrics.jsonl, and overlays/ of test images.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from mapet.data.masked import MaskedImages, open_segmentation
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.outcomes import Outcomes
from mapet.evaluation.protocol import Metrics
from mapet.evaluation.segmentation.evaluate import evaluate_model
from mapet.evaluation.segmentation.miou import Scores, constant_scores
from mapet.evaluation.segmentation.settings import SegmentSettings
from mapet.evaluation.segmentation.training import SegmentationTraining


@dataclass(frozen=True, kw_only=True)
class Segment(SegmentSettings):
    """Trains a class for every pixel; see `SegmentSettings` for the settings."""

    name: ClassVar[str] = "segment"
    several_processes: ClassVar[bool] = True
    metric: ClassVar[str] = "miou"
    pools: ClassVar[bool] = False
    with_random: ClassVar[bool] = False
    keeps_model: ClassVar[bool] = True

    def open_data(self, location: str) -> tuple[ImageSource, ImageSource]:
        """Images with masks; see `mapet.data.masked` for the layouts.

        Raises:
            DataError: A file is wrong or missing; the message names it.
        """
        return open_segmentation(location)

    def count_classes(self, train: ImageSource, test: ImageSource) -> int:
        """Classes of the class list that are not ignored."""
        return len(cast(MaskedImages, train).class_names)

    def evaluate(self, frozen: FrozenBackbone) -> Metrics:
        """mIoU, pixel accuracy and mean class accuracy on the test images after the last step.

        Details: IoU and test pixels of every class, what predicting the most frequent one would give, the blocks that were used,
        the last loss, and where the overlays are, beside the result.
        """
        train, test = cast(MaskedImages, frozen.train), cast(MaskedImages, frozen.test)
        context = nullcontext(frozen.folder) if frozen.folder else tempfile.TemporaryDirectory(prefix="mapet-segment-")
        with context as folder:
            frozen.keys["training"].record_all(train.keys)
            training = SegmentationTraining(frozen, train, self, Path(folder))
            model = training.trained_model()
            overlays = Path(folder) / "overlays"
            scores, outcomes = evaluate_model(model, frozen, test, self, overlays if frozen.folder else None)
            log = training.run_directory.read_metrics()
        details = {
            **_details(_readable(train, frozen.unreadable), test, scores, outcomes),
            "blocks": model.blocks,
            "last_loss": log[-1]["loss"] if log else None,
            "overlays": f"{frozen.folder.name}/overlays" if frozen.folder else None,
        }
        return Metrics(scores.metrics, details, outcomes)


def _readable(images: MaskedImages, unreadable: UnreadableImages) -> MaskedImages:
    """Without those that were skipped."""
    skipped = {*unreadable.names}
    return images.only([index for index in range(len(images)) if images.describe(index) not in skipped])


def _details(train: MaskedImages, test: MaskedImages, scores: Scores, outcomes: Outcomes) -> dict[str, Any]:
    """IoU of every class, and what predicting the most frequent training class everywhere would give."""
    assert outcomes.pixels is not None
    frequent, test_pixels = int(train.class_pixels.argmax()), outcomes.pixels[:, 1].sum(dim=0)
    constant = constant_scores(test_pixels, frequent)
    return {
        "iou": dict(zip(test.class_names, scores.iou, strict=True)),
        "test_pixels": dict(zip(test.class_names, test_pixels.tolist(), strict=True)),
        "most_frequent_class": {
            "name": train.class_names[frequent],
            "miou": constant.miou,
            "pixel_accuracy": constant.pixel_accuracy,
        },
    }
