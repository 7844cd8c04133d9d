"""Top-1 and top-5 of a classifier as it is: published checkpoints on ImageNet's validation images, prepared as published."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapet.data.address import DataAddress
from mapet.data.loader import LoadedBatch, UnreadableImages, make_loader, sequential_batches
from mapet.data.locations import open_location
from mapet.data.sources import SOURCES, ImageSource, only_folder, open_source
from mapet.data.splits import by_split, held_out_part, part_named
from mapet.data.tree import entries
from mapet.data.views import normalise
from mapet.errors import DataError, FailedRunError
from mapet.evaluation.copies import KeyedImages, SeenKeys, copies_line, count_copies
from mapet.evaluation.validation.classes import head_numbers
from mapet.evaluation.validation.classifier import Classifier
from mapet.evaluation.validation.view import Preprocessing, ValidationView
from mapet.runtime.device import autocast
from mapet.runtime.progress import format_seconds, progress, say


@dataclass(frozen=True)
class Validation:
    """Figures of a classifier and what they rest on.

    Args:
        model: Its name.
        checkpoint: The file.
        sha256: Of the file.
        data: Where the images are.
        images: That were judged.
        classes: That the images are of.
        outputs: Classes that the head tells apart.
        top1: Share of images whose class is the likeliest, 0 to 1.
        top5: Share of images whose class is among the five likeliest.
        seconds: Wall time, reading included.
        copies: Images that occur more than once, as `Copies.describe` counts them.
        preprocessing: As described by `Preprocessing.describe`.
        precision: "fp32" or "bf16".
    """

    model: str
    checkpoint: str
    sha256: str
    data: str
    images: int
    classes: int
    outputs: int
    top1: float
    top5: float
    seconds: float
    preprocessing: dict[str, Any]
    precision: str
    copies: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)

    def lines(self) -> str:
        """For people."""
        preprocessing = Preprocessing(**self.preprocessing)
        subset = "" if self.classes == self.outputs else f" (the head tells {self.outputs:,} apart)"
        return (
            f"{self.model}  top-1 {100 * self.top1:.3f} %  top-5 {100 * self.top5:.3f} %\n"
            f"images         {self.images:,} of {self.classes:,} classes{subset}\n"
            f"time           {format_seconds(self.seconds)}, {self.precision}\n"
            f"preprocessing  {preprocessing.line()}\n"
            f"checkpoint     {self.checkpoint}\n"
            f"SHA-256        {self.sha256}" + (f"\n{line}" if (line := copies_line(self.copies, self.images)) else "")
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
            source = held_out_part(parts, address.split, address.place)
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


def validate(
    classifier: Classifier,
    source: ImageSource,
    *,
    class_map: tuple[str, ...] | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 256,
    device: torch.device,
    workers: int = 0,
    precision: str = "fp32",
    unreadable: UnreadableImages | None = None,
) -> Validation:
    """Judges a classifier on every image of `source`.

    Args:
        classifier: As `load_classifier` gives it; moved to `device`.
        source: Labelled images.
        class_map: See `head_numbers`; by default the names that the classifier was saved with.
        preprocessing: By default the classifier's own.
        batch_size: Images a forward pass.
        device: Where to compute.
        workers: Processes that decode images.
        precision: "fp32" or "bf16".
        unreadable: Counts images that cannot be decoded.

    Raises:
        DataError: Classes do not fit the head, or too many images cannot be read.
        FailedRunError: A score is not a number.
    """
    began = time.perf_counter()
    numbers = head_numbers(source, classifier.classes, class_map or classifier.names)
    preprocessing = preprocessing or classifier.preprocessing
    unreadable = UnreadableImages() if unreadable is None else unreadable
    counter = _Counter(classifier, preprocessing, torch.from_numpy(numbers), device, precision)
    pinned, batches = device.type == "cuda", sequential_batches(len(source), batch_size)
    seen = SeenKeys(source)
    with progress(f"Validating {classifier.name}", len(source)) as bar:
        for batch in make_loader(source, ValidationView(preprocessing), batches, workers, pin_memory=pinned):
            unreadable.record(batch.unreadable)
            seen.record(batch.indices.numpy(), batch.keys)
            counter.add(batch, source)
            bar.advance(len(batch.keys) + len(batch.unreadable))
    judged = seen.images
    images = len(judged.keys)
    top1, top5 = counter.shares(images)
    return Validation(
        model=classifier.name,
        checkpoint=str(classifier.checkpoint),
        sha256=classifier.sha256,
        data=source.location,
        images=images,
        classes=len(np.unique(judged.labels)) if judged.labels is not None else 0,
        outputs=classifier.classes,
        top1=top1,
        top5=top5,
        seconds=time.perf_counter() - began,
        preprocessing=preprocessing.describe(),
        precision=precision,
        copies=count_copies(
            KeyedImages(judged.keys[:0], judged.labels[:0] if judged.labels is not None else None), judged
        ).describe(),
    )


class _Counter:
    """Counts images whose class is among the likeliest, on the device."""

    def __init__(
        self, classifier: Classifier, preprocessing: Preprocessing, numbers: torch.Tensor, device: torch.device, precision: str
    ) -> None:
        self._model = classifier.model.to(device)
        self._preprocessing, self._device, self._precision = preprocessing, device, precision
        self._numbers = numbers.to(device)
        self._sums = torch.zeros(2, dtype=torch.int64, device=device)  # found at once, found among five

    @torch.inference_mode()
    def add(self, batch: LoadedBatch, source: ImageSource) -> None:
        """Judges the images of a batch of `source`.

        Raises:
            FailedRunError: A score is not a number.
        """
        if not batch.keys or batch.labels is None:
            return
        images = batch.images.to(self._device, non_blocking=True)
        with autocast(self._device, self._precision):
            scores = self._model(normalise(images, self._preprocessing.mean, self._preprocessing.std)).float()
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        found = best == self._numbers[batch.labels.to(self._device)][:, None]
        self._sums += torch.stack([found[:, 0].sum(), found.sum()])
        if broken := (~scores.isfinite()).any(dim=1).nonzero()[:, 0].tolist():
            raise FailedRunError(
                f"The scores of {len(broken)} of {len(batch.keys)} images are not numbers, the first of "
                f"{source.describe(int(batch.indices[broken[0]]))}: the checkpoint is damaged, or --amp is too coarse for it. Run "
                "without --amp."
            )

    def shares(self, images: int) -> tuple[float, float]:
        """Top-1 and top-5 over `images` images."""
        if not images:
            raise DataError("None of the images could be read, so that there is nothing to judge by.")
        top1, top5 = self._sums.tolist()
        return top1 / images, top5 / images
