"""Top-1 and top-5 of a classifier as it is: published checkpoints on ImageNet's validation images, prepared as published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mapet.checkpoints.classifier import Classifier
from mapet.checkpoints.classifier_preprocessing import Preprocessing, ValidationView
from mapet.data.address import DataAddress
from mapet.data.batch import LoadedBatch
from mapet.data.locations import open_location
from mapet.data.source import ImageSource, subset
from mapet.data.sources import SOURCES, only_folder, open_source
from mapet.data.splits import by_split, part_named, validation_part
from mapet.data.tree import entries
from mapet.data.views import normalise
from mapet.errors import DataError, FailedRunError, SettingsError, nearest
from mapet.evaluation.classify.classes import head_numbers
from mapet.evaluation.frozen_backbone import ImageReader
from mapet.evaluation.intervals import share_interval
from mapet.evaluation.outcomes import Outcomes, classified
from mapet.evaluation.protocol import Metrics, Protocol, Result
from mapet.runtime.device import autocast
from mapet.runtime.progress import format_seconds, say

_PRECISIONS = ("fp32", "bf16")
_Channels = tuple[float, float, float]


class FrozenClassifier(ImageReader):
    """A classifier and the images that it is tested on; nothing is learned from others.

    Args:
        classifier: Its model is moved to the device.
        train: Empty.
        test: Labelled images.
        work: Of `ImageReader`.
    """

    doing: ClassVar[str] = "Classifying"

    def __init__(self, classifier: Classifier, train: ImageSource, test: ImageSource, **work: Any) -> None:
        super().__init__(classifier.name, train, test, **work)
        self.classifier = classifier
        self.model = classifier.model.to(self.device)
        self.numbers = torch.from_numpy(head_numbers(test, classifier.classes, classifier.names))

    @torch.inference_mode()
    def outcomes(self, loaded: LoadedBatch, preprocessing: Preprocessing, precision: str) -> Outcomes:
        """Whether the classes of the images of a batch are among the likeliest.

        Raises:
            FailedRunError: A score is not a number.
        """
        images = normalise(loaded.images.to(self.device, non_blocking=True), preprocessing.mean, preprocessing.std)
        with autocast(self.device, precision):
            scores = self.model(images).float()
        if broken := (~scores.isfinite()).any(dim=1).nonzero()[:, 0].tolist():
            raise FailedRunError(
                f"The scores of {len(broken)} of {len(loaded.keys)} images are not numbers, the first of "
                f"{self.test.describe(int(loaded.indices[broken[0]]))}: the checkpoint is damaged, or --amp is too coarse for it. "
                "Run without --amp."
            )
        assert loaded.labels is not None
        return replace(classified(scores, self.numbers[loaded.labels]), labels=loaded.labels)


@dataclass(frozen=True, kw_only=True)
class Classify(Protocol):
    """Top-1 and top-5 of a published classifier, by its published preprocessing; nothing is trained.

    Args:
        interpolation: bicubic, bilinear or lanczos; None, here and below: the checkpoint's own.
        crop_pct: The shorter side is resized to image size / crop_pct.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        precision: "fp32" or "bf16".
        batch_size: Images a forward pass; not part of the hash.
    """

    name: ClassVar[str] = "classify"
    pools: ClassVar[bool] = False
    with_random: ClassVar[bool] = False
    takes: ClassVar[type] = Classifier
    takes_a: ClassVar[str] = "classifier"

    interpolation: str | None = None
    crop_pct: float | None = None
    mean: _Channels | None = None
    std: _Channels | None = None
    precision: str = "fp32"
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.changed(Preprocessing(224))
        if self.precision not in _PRECISIONS:
            raise SettingsError(f"There is no precision '{self.precision}'. {nearest(self.precision, _PRECISIONS)}")
        if self.batch_size < 1:
            raise SettingsError(f"batch_size is {self.batch_size}; allowed: 1 or more.")

    def describe(self) -> dict[str, Any]:
        """Name, version and every setting that changes a figure."""
        return {name: value for name, value in super().describe().items() if name != "batch_size"}

    def changed(self, preprocessing: Preprocessing) -> Preprocessing:
        """The checkpoint's preprocessing with what these settings overrule."""
        changes = {name: getattr(self, name) for name in ("interpolation", "crop_pct", "mean", "std")}
        return replace(preprocessing, **{name: value for name, value in changes.items() if value is not None})

    def open_data(self, location: str) -> tuple[ImageSource, ImageSource]:
        """No images to learn from, and those of `validation_images`."""
        source = validation_images(location)
        return subset(source, []), source

    def count_classes(self, train: ImageSource, test: ImageSource) -> int:
        """Classes of the test images."""
        return len(np.unique(test.labels)) if test.labels is not None else 0

    def prepare(self, target: Classifier, title: str, train: ImageSource, test: ImageSource, **work: Any) -> FrozenClassifier:
        """The classifier and its images."""
        return FrozenClassifier(target, train, test, **work)

    def evaluate(self, frozen: FrozenClassifier) -> Metrics:
        """Tests the classifier on every image that can be read.

        Raises:
            DataError: No image can be read.
            FailedRunError: A score is not a number.
        """
        classifier, preprocessing = frozen.classifier, self.changed(frozen.classifier.preprocessing)
        loaded = frozen.load(frozen.test, ValidationView(preprocessing), "test", self.batch_size)
        parts = [frozen.outcomes(batch, preprocessing, self.precision) for batch in loaded if batch.keys]
        if not parts:
            raise DataError("None of the images could be read, so that nothing can be evaluated.")
        values = {name: torch.cat([part.values[name] for part in parts]) for name in ("top1", "top5")}
        labels = torch.cat([part.labels for part in parts if part.labels is not None])
        details = {
            "model": classifier.name,
            "sha256": classifier.sha256,
            "outputs": classifier.classes,
            "classes": len(labels.unique()),
            "preprocessing": preprocessing.describe(),
            "intervals": {name: share_interval(value) for name, value in values.items()},
        }
        return Metrics.of(Outcomes(values, labels), details)

    def facts(self, result: Result) -> dict[str, Any]:
        """A result as `mapet validate --json` writes it."""
        details = {name: result.details[name] for name in ("model", "sha256", "outputs", "classes", "preprocessing", "copies")}
        figures = {name: result.figures[name] for name in ("top1", "top5")}
        facts = {"checkpoint": result.backbone, "data": result.data, "images": result.test_images, "seconds": result.seconds}
        return {**details, **figures, **facts, "precision": self.precision}

    def line(self, result: Result) -> str:
        """Top-1 and top-5, and everything that they rest on."""
        figures, facts = result.figures, result.details
        subset = "" if facts["classes"] == facts["outputs"] else f" (the head has {facts['outputs']:,})"
        low, high = (100 * bound for bound in facts["intervals"]["top1"])
        return (
            f"{facts['model']}  top-1 {100 * figures['top1']:.3f} %  top-5 {100 * figures['top5']:.3f} %\n"
            f"interval       top-1 [{low:.2f}, {high:.2f}] % (95 %)\n"
            f"images         {result.test_images:,} of {facts['classes']:,} classes{subset}\n"
            f"time           {format_seconds(result.seconds)}, {self.precision}\n"
            f"preprocessing  {Preprocessing(**facts['preprocessing']).line()}\n"
            f"protocol       {result.protocol_hash}\n"
            f"checkpoint     {result.backbone}\n"
            f"SHA-256        {facts['sha256']}"
        )


def validation_images(location: str) -> ImageSource:
    """The labelled images to validate on.

    Args:
        location: A folder with val/ (or validation/, valid/) in it (ImageNet's), a folder of class folders, all of which is taken,
            or any other location, of which the held-out part is taken. `#split=NAME` takes another part.

    Raises:
        DataError: There are none, or they have no labels.
    """
    address = DataAddress.parse(location)
    if (source := _split_folder(address)) is None:
        parts = None if address.place in SOURCES else open_location(location)
        if parts and (len(parts) > 1 or address.split is not None):
            source = validation_part(parts, address.split, address.place)
        else:
            source = next(iter(parts.values())) if parts else open_source(location, "test")
    if (only := only_folder(source)) is not None:
        raise DataError(f"{source.location} has one class folder ('{only}'). Give all class folders, one a class.")
    if source.labels is None:
        raise DataError(
            f"The images of {source.location} have no labels. ImageNet's validation images as they are downloaded lie in one "
            "folder: sort them into one folder a class, named by its wnid (n01440764/ILSVRC2012_val_00000293.JPEG), or give a CSV "
            "file with the columns path and label."
        )
    return source


def _split_folder(address: DataAddress) -> ImageSource | None:
    """The images in val/, whether there is a training part or not, or in the folder of the split that the user names."""
    folder = Path(address.place)
    splits = by_split(entries(folder)[0], str(folder)) if folder.is_dir() else {}
    name = part_named(splits.values(), address.split, address.place) if splits and address.split else splits.get("val")
    if name is None:
        return None
    if address.split is None and "test" in splits:
        say(f"{folder}: {name}/ is validated on; left out: {splits['test']}/. --split {splits['test']} takes that one.")
    return open_source(str(replace(address, place=str(folder / name), split=None)), "all")
