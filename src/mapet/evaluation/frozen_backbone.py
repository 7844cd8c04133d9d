"""The subject of most protocols: a frozen backbone with labelled training and test images.

Features that need no gradient are extracted once and shared by all protocols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.data.background import BackgroundBatches
from mapet.data.batch import LoadedBatch
from mapet.data.labels import refuse_masks
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import BatchItem, StepBatches, sequential_batches, shared
from mapet.data.skipped import UnreadableImages, walk
from mapet.data.source import ImageSource
from mapet.data.sources import only_folder
from mapet.data.views import FixedView, View, normalise
from mapet.errors import DataError, ModelError, SettingsError
from mapet.evaluation.copies import KeyedImages, SeenKeys
from mapet.models.backbone import normed_tokens
from mapet.models.spec import BackboneSpec
from mapet.runtime.processes import any_process, errors_in_all, gather_rows
from mapet.runtime.progress import say
from mapet.runtime.rank import this_process

POOLS = ("mean", "cls", "both")
BATCH_SIZE = 256
_CHECKED = 8
_LITTLE = 3e-3  # of the length of features; below it, half precision leaves three bits or fewer


@dataclass(frozen=True)
class FeatureSet:
    """Features of labelled images.

    Args:
        mean: (n, D) float32, mean over the patch tokens behind the final norm.
        cls: (n, D) float32, the class token behind the final norm; (n, 0) without one.
        labels: (n,) int64.
    """

    mean: Tensor
    cls: Tensor
    labels: Tensor

    def pooled(self, pool: str) -> Tensor:
        """(n, D) or, for "both", (n, 2D): class token and mean as they are, one behind the other; (n, D) without a class token.

        Raises:
            SettingsError: The pool is the class token, and the backbone has none.
        """
        if pool == "cls" and self.cls.shape[1] == 0:
            raise SettingsError("This backbone has no class token, so that pooling 'cls' is impossible. Use 'mean' or 'both'.")
        return {"mean": self.mean, "cls": self.cls, "both": torch.cat([self.cls, self.mean], dim=1)}[pool]


class Evaluated(ABC):
    """What a protocol evaluates, with the images for it.

    Attributes:
        title: What to call it while it works ("pre-trained").
        folder: Where the protocol may keep checkpoints, models and pictures; None where nothing may be kept.
    """

    title: str
    folder: Path | None = None

    @property
    @abstractmethod
    def image_counts(self) -> tuple[int, int]:
        """Training and test images, without those that could not be read."""

    @property
    @abstractmethod
    def images(self) -> tuple[KeyedImages, KeyedImages]:
        """The training and the test images that were read."""


class ImageReader(Evaluated):
    """Base of what reads its images itself.

    Args:
        title: What to call it while it works ("pre-trained").
        train: Labelled images to learn from.
        test: Labelled test images.
        device: Where to compute.
        workers: Processes that decode images.
        unreadable: Counts images that cannot be decoded.

    Attributes:
        keys: Of the training and of the test images that were read.
        doing: The beginning of the progress bar's title.
    """

    doing: ClassVar[str] = "Features of"

    def __init__(
        self,
        title: str,
        train: ImageSource,
        test: ImageSource,
        *,
        device: torch.device,
        workers: int,
        unreadable: UnreadableImages,
    ) -> None:
        self.title, self.device = title, device
        self.train, self.test = train, test
        self.workers, self.unreadable = workers, unreadable
        self.keys = {"training": SeenKeys(train), "test": SeenKeys(test)}

    @property
    def image_counts(self) -> tuple[int, int]:
        """See `Evaluated`."""
        return len(self.train) - self.unreadable.among(self.train), len(self.test) - self.unreadable.among(self.test)

    @property
    def images(self) -> tuple[KeyedImages, KeyedImages]:
        """See `Evaluated`."""
        return self.keys["training"].images, self.keys["test"].images

    def compute(self, batches: Iterable[LoadedBatch], function: Callable[[LoadedBatch], Sequence[Tensor]]) -> list[Tensor]:
        """What `function` gives for every readable image, in their order.

        Of several processes, each computes some of the batches that one process would compute, and all get the whole.

        Args:
            batches: Of `load` or `read`, to their end.
            function: From a batch of B images, which may be none, to tensors (B, ...).

        Returns:
            A tensor (n, ...) for each of them.

        Raises:
            MapetError: What `function` raises in any process, in all of them.
        """
        parts = []
        with errors_in_all():
            parts = [function(loaded) for loaded in batches]
        self.share_records()
        return [gather_rows(as_all_have_it(torch.cat(tensors))) for tensors in zip(*parts, strict=True)]

    def share_records(self) -> None:
        """Gives every process what the others have read and what they could not read.

        Raises:
            DataError: There are more unreadable images than may be skipped.
        """
        self.unreadable.record_in_all(self.unreadable.images)
        for keys in self.keys.values():
            keys.share()

    def load(self, source: ImageSource, view: View, part: str, batch_size: int | None = None) -> Iterator[LoadedBatch]:
        """Every image of `source` once, in its order, with progress; what cannot be read is recorded, and keys are kept.

        Of several processes, each gets some of the batches; one without any gets an empty batch.

        Args:
            source: The images.
            view: How they are seen.
            part: "training", "test", or another word for a part of either.
            batch_size: Images at once; by default `BATCH_SIZE`.

        Raises:
            DataError: There are more unreadable images than may be skipped.
        """
        batches = _batches_of_process(source, batch_size)
        title, images = f"{self.doing} {part} images, {self.title}", sum(len(item.indices) for item in batches)
        loader = make_loader(source, ViewRenderer(view), batches, self.workers, self.device)
        for loaded in walk(title, loader, images, self.unreadable, part=f"{part} images"):
            self.record_keys(source, loaded)
            yield loaded

    def read(self, source: ImageSource, view: View, batch_size: int) -> Iterator[LoadedBatch]:
        """As `load`, without progress."""
        for loaded in make_loader(source, ViewRenderer(view), _batches_of_process(source, batch_size), self.workers, self.device):
            self.unreadable.record(loaded.unreadable)
            self.record_keys(source, loaded)
            yield loaded

    def record_keys(self, source: ImageSource, loaded: LoadedBatch) -> None:
        """Keeps the sample keys of a batch of all training or all test images."""
        for images, part in ((self.train, "training"), (self.test, "test")):
            if source is images:
                self.keys[part].record(loaded.indices.numpy(), loaded.keys)


class FrozenBackbone(ImageReader):
    """A frozen backbone and the images of its evaluation.

    Args:
        title: What to call it while it works ("pre-trained").
        backbone: Moved to `device`, in evaluation mode.
        spec: How it is fed.
        train: Labelled images to learn from.
        test: Labelled test images.
        work: Of `ImageReader`.
    """

    def __init__(
        self, title: str, backbone: VisionTransformer, spec: BackboneSpec, train: ImageSource, test: ImageSource, **work: Any
    ) -> None:
        super().__init__(title, train, test, **work)
        self.spec = spec
        self._remarked = False
        self.backbone = backbone.to(self.device).eval().requires_grad_(False)

    @property
    def num_classes(self) -> int:
        """As many as the data names, or one more than the largest label."""
        return count_classes(self.train, self.test)

    def augmented(self, view: View, steps: StepBatches, seed: int) -> BackgroundBatches:
        """Batches of training images, in views that are new in every epoch; of several processes, each gets its share of a batch.

        Args:
            view: A function of the image and a seed.
            steps: Which images.
            seed: Of the views.
        """
        return make_loader(self.train, ViewRenderer(view, seed), shared(steps.items(), this_process()), self.workers, self.device)

    @cached_property
    def train_features(self) -> FeatureSet:
        """Of the training images, in the view that the backbone was pre-trained on."""
        return self.extract(self.train, FixedView(self.spec.image_size), "training")

    @cached_property
    def test_features(self) -> FeatureSet:
        """Of the test images, in the view that the backbone was pre-trained on."""
        return self.extract(self.test, FixedView(self.spec.image_size), "test")

    def extract(self, source: ImageSource, view: View, part: str) -> FeatureSet:
        """Features of every readable image of `source`, in its order.

        Raises:
            ModelError: Features are not finite.
        """

        def describe(loaded: LoadedBatch) -> tuple[Tensor, ...]:
            features = self.features(loaded.images)
            refuse_non_finite(self, source, loaded, *features)
            return *features, cast(Tensor, loaded.labels)

        mean, cls, labels = self.compute(self.load(source, view, part), describe)
        self.remark_on_variation(mean)
        return FeatureSet(mean, cls, labels.to(self.device))

    def remark_on_variation(self, features: Tensor) -> None:
        """Says once where features (n, ...) of images are nearly the same vector, of which few digits tell images apart."""
        sample = features[:: max(1, len(features) // BATCH_SIZE)].flatten(1).float().cpu().double()
        length = float(torch.linalg.vector_norm(sample, dim=1).mean()) if len(sample) else 0.0
        share = float(torch.linalg.vector_norm(sample - sample.mean(dim=0), dim=1).mean()) / length if length else 1.0
        if share < _LITTLE and not self._remarked:
            self._remarked = True
            say(
                f"The features of images differ by {100 * share:.2g} % of their length ({self.title} backbone). Little precision "
                "is left for what tells images apart: protocols that do not standardise features in float64 can give figures that "
                "are too low. logistic and fewshot do."
            )

    def check_finite(self) -> None:
        """Checks the features of the first training images before a long training with this backbone.

        Raises:
            ModelError: They are not finite.
        """
        renderer, first = ViewRenderer(FixedView(self.spec.image_size)), BatchItem([*range(min(len(self.train), _CHECKED))])
        for loaded in make_loader(self.train, renderer, [first]):
            refuse_non_finite(self, self.train, loaded, *self.features(loaded.images))

    @torch.inference_mode()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the patches and class token behind the final norm.

        Args:
            images: (B, 3, H, W) uint8.

        Returns:
            (B, D) each; the second is (B, 0) without a class token.
        """
        backbone = self.backbone
        inputs = normalise(images.to(self.device, non_blocking=True), self.spec.mean, self.spec.std)
        tokens = normed_tokens(backbone, inputs)
        cls = tokens[:, 0] if backbone.cls_token is not None else tokens[:, 0, :0]
        return tokens[:, backbone.num_prefix_tokens :].mean(dim=1).float(), cls.float()


def _batches_of_process(source: ImageSource, batch_size: int | None) -> list[BatchItem]:
    """Of the batches that one process would make, the part of this process; an empty one where it has no part."""
    return this_process().share(sequential_batches(len(source), batch_size or BATCH_SIZE)) or [BatchItem([])]


def as_all_have_it(numbers: Tensor) -> Tensor:
    """In float32 where another process has its part of them in float32."""
    half = numbers.dtype == torch.float16
    return numbers.float() if any_process(not half) and half else numbers


def refuse_non_finite(frozen: FrozenBackbone, source: ImageSource, loaded: LoadedBatch, *outputs: Tensor) -> None:
    """Refuses features of a batch that are NaN, infinite, or too large to be squared in single precision.

    Args:
        frozen: Of which they are.
        source: The images.
        loaded: The batch of B images.
        outputs: (B, ...) each.

    Raises:
        ModelError: Names the first image and, where there is one, a weight that is not finite.
    """
    norms = torch.stack([torch.linalg.vector_norm(output.flatten(1).float(), dim=1) for output in outputs])
    broken = (~norms.isfinite()).any(dim=0).nonzero()[:, 0].tolist()
    if not broken:
        return
    weights = frozen.backbone.named_parameters()
    damaged = next((name for name, weight in weights if not weight.isfinite().all()), None)
    cause = "All its weights are finite: they may be too large, or belong to another model."
    if damaged is not None:
        cause = f"Its weight '{damaged}' is not finite: the file is damaged, or its training diverged."
    raise ModelError(
        f"The features of {len(broken)} of {len(loaded.keys)} images are not finite (NaN, infinite, or too large to be squared), "
        f"the first of {source.describe(int(loaded.indices[broken[0]]))} ({frozen.title} backbone). {cause} Give other weights."
    )


def check_labels(source: ImageSource) -> None:
    """Refuses images without at least two classes, or with labels that are none.

    Raises:
        DataError: There are no labels; the message has the ways to give them.
    """
    refuse_masks(source.location, source.classes or ())
    problem = _too_few_classes(source)
    if problem is not None:
        raise DataError(f"An evaluation needs labelled images of at least two classes; {source.location} has {problem}")
    if source.labels is not None and source.labels.min() < 0:
        raise DataError(
            f"{source.location} has images with the label {source.labels.min()}, which stands for 'unknown' in many test sets. "
            "Evaluate on images whose labels are known."
        )


def _too_few_classes(source: ImageSource) -> str | None:
    """What is there in place of two classes, and what to do; None where there are two."""
    numbers = [] if source.labels is None else sorted(set(source.labels.tolist()))
    if len(numbers) > 1:
        return None
    if (only := only_folder(source)) is not None:
        return f"one class folder ('{only}'). Add folders of other classes beside it."
    if not numbers:
        return "no labels. Sort the images into one folder a class, or use Parquet with a column 'label'."
    name = f" ('{source.classes[numbers[0]]}')" if source.classes and 0 <= numbers[0] < len(source.classes) else ""
    return f"one class{name}. Add images of other classes."


def count_classes(train: ImageSource, test: ImageSource) -> int:
    """As many as the sources name, or one more than the largest label."""
    assert train.labels is not None
    assert test.labels is not None
    named = max(len(source.classes or ()) for source in (train, test))
    return max(named, int(max(train.labels.max(), test.labels.max())) + 1)
