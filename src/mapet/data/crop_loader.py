"""From a source to batches of crops: every image decoded once, its crops each rendered for whoever looks at them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mapet.data.background import BackgroundBatches, BatchMaker
from mapet.data.crops import Crops
from mapet.data.loader import LoadedBatch, Samples, bytes_of, stack
from mapet.data.source import ImageSource
from mapet.data.views import Rendering


@dataclass(frozen=True)
class CropBatch:
    """What one batch is to show.

    Args:
        indices: Positions of the images in the source.
        crops: Numbers of the crops that are shown of each.
    """

    indices: list[int]
    crops: tuple[int, ...] = (0,)


class CroppedImages(BatchMaker[LoadedBatch]):
    """Item `CropBatch` is the `LoadedBatch` of these crops; see `make_crop_loader`."""

    def __init__(
        self, source: ImageSource, crops: Crops, rendering: Rendering, tokenizer_rendering: Rendering | None = None
    ) -> None:
        self._source, self._crops = source, crops
        self._rendering, self._tokenizer_rendering = rendering, tokenizer_rendering

    def __getitem__(self, wanted: CropBatch) -> LoadedBatch:
        samples = Samples(self._source, wanted.indices)
        seen, tokenised = [], []
        for image, key in samples:
            for number in wanted.crops:
                region = self._crops.region(image.width, image.height, key, number)
                seen.append(self._rendering(image, region))
                if self._tokenizer_rendering is not None:
                    tokenised.append(self._tokenizer_rendering(image, region))
        batch = replace(samples.batch(seen, self._rendering.size), crops=wanted.crops)
        if self._tokenizer_rendering is None:
            return batch
        return replace(batch, tokenizer_images=stack(tokenised, self._tokenizer_rendering.size))

    def pixels(self, wanted: CropBatch) -> int:
        """Bytes of a batch, for backbone and tokenizer."""
        renderings = [self._rendering, *([] if self._tokenizer_rendering is None else [self._tokenizer_rendering])]
        return len(wanted.indices) * len(wanted.crops) * sum(bytes_of(rendering.size) for rendering in renderings)


def make_crop_loader(
    source: ImageSource,
    crops: Crops,
    batches: Iterable[CropBatch],
    rendering: Rendering,
    *,
    tokenizer_rendering: Rendering | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> BackgroundBatches[LoadedBatch]:
    """Loads `batches` of `source` in order, in the background if there are workers.

    Args:
        source: The images.
        crops: Where they are cropped.
        batches: Which images in which crops; read lazily.
        rendering: How `LoadedBatch.images` are made of the crops.
        tokenizer_rendering: How `LoadedBatch.tokenizer_images` are made of the same crops; None for none.
        workers: Number of processes; 0 loads in this one.
        pin_memory: Where the batches go to a CUDA device: copies need not be waited for then.
    """
    return BackgroundBatches(CroppedImages(source, crops, rendering, tokenizer_rendering), batches, workers, pin_memory)
