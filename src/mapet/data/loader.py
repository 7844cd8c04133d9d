"""From a source to batches: every image is read and decoded once, its views rendered, and what cannot be read is named.

The pixels of a view are a function of its number, the image and a seed: the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mapet.data.background import BackgroundBatches
from mapet.data.batch import LoadedBatch, UnreadableImage
from mapet.data.decode import decode_image
from mapet.data.order import BatchItem
from mapet.data.regions import Regions
from mapet.data.source import ImageSource, sample_key
from mapet.data.views import Rendering, View
from mapet.errors import UnreadableImageError
from mapet.runtime.seeding import derive_seed

Shape = tuple[tuple[int, ...], torch.dtype]


class Renderer(Protocol):
    """Makes tensors of one view of one image."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names of `LoadedBatch`'s fields that are made, with the shape and the type of one view of one image."""
        ...

    def __call__(self, image: Image.Image, key: str, index: int, view: int) -> dict[str, Tensor]:
        """These tensors.

        Args:
            image: In mode RGB.
            key: Its sample key.
            index: Its position in the source.
            view: The number of the view.
        """
        ...


class ViewRenderer:
    """`LoadedBatch.images` by a view.

    Args:
        view: A function of the image and a seed.
        seed: Of the run; the same (seed, number of the view, sample key) give the same pixels.
    """

    def __init__(self, view: View, seed: int = 0) -> None:
        self._view, self._seed = view, seed
        self.shapes = {"images": image_shape(view.size)}

    def __call__(self, image: Image.Image, key: str, index: int, view: int) -> dict[str, Tensor]:
        """See `Renderer`."""
        return {"images": self._view(image, derive_seed(self._seed, "view", view, key))}


class RegionRenderer:
    """Crops as the backbone sees them and, where it has a rendering of its own, as the tokenizer does.

    Args:
        regions: The region of each image and view index.
        rendering: How `LoadedBatch.images` are made of the crops.
        tokenizer_rendering: How `LoadedBatch.tokenizer_images` are made of the same crops; None for none.
    """

    def __init__(self, regions: Regions, rendering: Rendering, tokenizer_rendering: Rendering | None = None) -> None:
        self._regions, self._renderings = regions, {"images": rendering}
        if tokenizer_rendering is not None:
            self._renderings["tokenizer_images"] = tokenizer_rendering
        self.shapes = {name: image_shape(view_rendering.size) for name, view_rendering in self._renderings.items()}

    def __call__(self, image: Image.Image, key: str, index: int, view: int) -> dict[str, Tensor]:
        """See `Renderer`."""
        region = self._regions.region(image.width, image.height, key, view)
        return {name: rendering(image, region) for name, rendering in self._renderings.items()}


class ImageBatches(Dataset[LoadedBatch]):
    """Reads, decodes and renders whole batches: item `BatchItem` is a `LoadedBatch`.

    Args:
        source: The images.
        renderer: What to make of each.
    """

    def __init__(self, source: ImageSource, renderer: Renderer) -> None:
        self._source, self._renderer = source, renderer

    def __getitem__(self, item: BatchItem) -> LoadedBatch:
        views: dict[str, list[Tensor]] = {name: [] for name in self._renderer.shapes}
        readable: list[int] = []
        keys: list[str] = []
        unreadable: list[UnreadableImage] = []
        for index in item.indices:
            key = ""
            try:
                content = self._source.read(index)
                key = sample_key(content)
                image = decode_image(content)
            except UnreadableImageError as error:
                unreadable.append(UnreadableImage(index, key, self._source.describe(index), str(error)))
                continue
            readable.append(index)
            keys.append(key)
            for view in item.views:
                for name, tensor in self._renderer(image, key, index, view).items():
                    views[name].append(tensor)
        labels = None if self._source.labels is None else torch.from_numpy(self._source.labels[readable])
        tensors = {"labels": labels, **{name: _stack(views[name], shape) for name, shape in self._renderer.shapes.items()}}
        indices = torch.tensor(readable, dtype=torch.int64)
        return LoadedBatch(keys=keys, indices=indices, unreadable=unreadable, views=item.views, **tensors)

    def bytes_of(self, item: BatchItem) -> int:
        """Bytes of a batch, those of its pixels."""
        view = sum(prod(shape) * dtype.itemsize for shape, dtype in self._renderer.shapes.values())
        return len(item.indices) * len(item.views) * view


def image_shape(size: int) -> Shape:
    """Of the pixels of one view."""
    return (3, size, size), torch.uint8


def _stack(tensors: list[Tensor], shape: Shape) -> Tensor:
    return torch.stack(tensors) if tensors else torch.empty(0, *shape[0], dtype=shape[1])


def make_loader(
    source: ImageSource,
    renderer: Renderer,
    batches: Iterable[BatchItem],
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> BackgroundBatches:
    """Loads `batches` of `source` in order, in the background if there are workers.

    Args:
        source: The images.
        renderer: What to make of each.
        batches: Which images in which views; read lazily.
        workers: Number of processes, which serve all batches; 0 loads in this one.
        device: Where the batches go: copies to a CUDA device need not be waited for.
    """
    return BackgroundBatches(ImageBatches(source, renderer), batches, workers, torch.device(device).type == "cuda")
