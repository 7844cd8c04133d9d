"""Training images of a run, with the tokens that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mapet.config.settings import PretrainSettings
from mapet.data.batch import LoadedBatch
from mapet.data.source import ImageSource
from mapet.errors import DataError
from mapet.token_store.token_source import TokenSource

SAMPLED_IMAGES = 1000
_BATCH_SIZE = 50


@dataclass(frozen=True)
class Sample:
    """Training images of a run, drawn by its seed.

    Args:
        images: (n, H, W, 3) uint8, as the model sees them; of several crops of an image the first.
        ids: (n, gh, gw) int64, their tokens.
        names: What their source calls them.
    """

    images: np.ndarray
    ids: np.ndarray
    names: list[str]


def draw_sample(data: str, settings: PretrainSettings, tokens: TokenSource) -> Sample:
    """Up to `SAMPLED_IMAGES` training images.

    The whole source is drawn from, as finding its training part may mean reading every file; images without stored tokens were not
    trained on and are left out.

    Args:
        data: Where the images are.
        settings: Of the run.
        tokens: Those that the run was trained on.

    Raises:
        DataError: The images are gone, or none of those drawn has tokens.
    """
    import torch

    from mapet.data.sources import open_source

    source = open_source(data, "all")
    images, ids, names = [], [], []
    for batch in _batches(source, settings, tokens):
        tokenised = batch.only(np.flatnonzero(tokens.known(batch.keys)).tolist())
        images.append(tokenised.images.permute(0, 2, 3, 1).numpy())
        token_ids = tokens.tokens(tokenised, torch.device("cpu"))
        assert token_ids is not None
        ids.append(token_ids.unflatten(1, tokens.grid_size).numpy())
        names += [source.describe(index) for index in tokenised.indices.tolist()]
    if not names:
        where = "" if tokens.store is None else f" in {tokens.store.path}"
        raise DataError(
            f"None of {min(len(source), SAMPLED_IMAGES)} images drawn from {data} has tokens{where}: they are not those of the "
            "run, or have changed since. Bring the images back to see this."
        )
    return Sample(np.concatenate(images), np.concatenate(ids), names)


def _batches(source: ImageSource, settings: PretrainSettings, tokens: TokenSource) -> Iterator[LoadedBatch]:
    """Crop 0 of the drawn images, for the model and, where it has to tokenise them, for the tokenizer."""
    import torch

    from mapet.data.loader import RegionRenderer, make_loader
    from mapet.data.order import BatchItem
    from mapet.data.regions import regions_of
    from mapet.data.skipped import UnreadableImages, walk
    from mapet.data.views import Rendering
    from mapet.runtime.seeding import seeded_generator

    order = torch.randperm(len(source), generator=seeded_generator(settings.seed, "report"))[:SAMPLED_IMAGES]
    renderer = RegionRenderer(regions_of(settings.view, settings.seed), Rendering(settings.image_size), tokens.rendering)
    loader = make_loader(source, renderer, [BatchItem(indices.tolist()) for indices in order.split(_BATCH_SIZE)])
    return walk("Reading images of the run", loader, len(order), UnreadableImages(len(order)), after=2.0)
