"""Tokenising a collection once: in parts that survive any interruption, by any number of processes, into one store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from mapet.data.batch import LoadedBatch
from mapet.data.loader import RegionRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.regions import FixedCrop, Regions
from mapet.data.skipped import UnreadableImages, walk
from mapet.data.source import ImageSource
from mapet.errors import FailedRunError, TokenStoreError
from mapet.runtime.lock import only_writer
from mapet.token_store.encode import encode_for_storing, rendering_for, token_space
from mapet.token_store.format import KEY_DTYPE, TokenSpace
from mapet.token_store.keys import belongs_to_rank, image_keys, unreadable_key
from mapet.token_store.merge import Coverage, existing_store, finished_store, held_keys, merge
from mapet.token_store.parts import Part, PartFolder
from mapet.token_store.read import TokenStore
from mapet.tokenizers.base import Tokenizer

CHUNK = 4096
SECONDS_PER_CHUNK = 60.0
SECONDS_BETWEEN_POLLS = 1.0
SECONDS_WITHOUT_NEWS = 1800.0

T = TypeVar("T")


def build_store(
    source: ImageSource,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    regions: Regions | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    unreadable: UnreadableImages,
    rank: int = 0,
    world: int = 1,
) -> TokenStore:
    """Makes sure that the store at `path` has the tokens of every image of `source`, and opens it.

    Images are identified by content: those that the store or an interrupted build already has are not tokenised again, copies
    are stored once, and what the store holds besides stays. Work is saved in parts of at most `CHUNK` images or a minute; the
    store itself appears, or is replaced, when everything is done.

    Args:
        source: The images; each is read for its key, unless the source has its keys (`with_keys`), and again for its tokens.
        tokenizer: What makes the tokens; moved to `device`.
        path: The folder of the store, new or of the same tokenizer and view.
        regions: The regions of an image that are tokenised: one fixed crop (default) or several stored ones.
        batch_size: Crops per call of the tokenizer, or those of one image if they are more.
        workers: Processes that decode images; 0 decodes in this one.
        device: Where the tokenizer runs.
        unreadable: Counts the images of this process that cannot be decoded, and refuses too many.
        rank: Which of `world` processes this is. Every one is called with the same arguments; they share the work by sample
            key, meet only in the folder of the store, and all return the complete store.
        world: Number of processes.

    Raises:
        TokenStoreError: `path` holds something else, or tokens of another tokenizer or view, or an image changed meanwhile.
        InUseError: Another process builds the same store.
        DataError: Too many images are unreadable, or all.
        FailedRunError: Another process stopped working.
    """
    path, regions = Path(path), regions or FixedCrop()
    space = token_space(tokenizer, regions)
    with only_writer(*([path] if rank == 0 else [])):
        index_of: dict[str, int] = {}
        for index, key in enumerate(image_keys(source)):
            index_of.setdefault(key, index)
        parts = PartFolder(path, space)
        tokenised = {key for part in parts.read_all() for key in part.texts()}
        store = existing_store(path, space)  # after the parts: another rank removes those only once the store has them
        tokenised |= held_keys(store, index_of)
        todo = {key: at for key, at in index_of.items() if key not in tokenised and belongs_to_rank(key, rank, world)}
        if todo:
            batches = _batches([*todo.values()], batch_size, regions.count)
            loader = make_loader(source, RegionRenderer(regions, rendering_for(tokenizer)), batches, workers, device)
            done = _tokenise(loader, len(todo), tokenizer, space, parts, device, unreadable)
            _refuse_changed(source, [at for key, at in todo.items() if key not in done])
        if rank == 0:
            coverage = Coverage(index_of, store, parts)
            _wait(lambda: coverage.is_complete() or None, parts)
            return merge(path, space, store, parts, index_of)
        return _wait(lambda: finished_store(path, index_of), parts)


class _PartWriter:
    """Collects tokenised batches and writes them as parts; what is left is written on leaving, also by an exception."""

    def __init__(self, parts: PartFolder) -> None:
        self._parts = parts
        self._waiting: list[Part] = []
        self._since = time.monotonic()
        self.written: set[str] = set()

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()

    def add(self, batch: Part) -> None:
        """Takes a batch; writes a part when enough images or seconds have come together."""
        self._waiting.append(batch)
        images = sum(len(part.keys) for part in self._waiting)
        if images >= CHUNK or time.monotonic() - self._since >= SECONDS_PER_CHUNK:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._since = self._waiting, [], time.monotonic()
        if waiting:
            part = Part.concatenate(waiting)
            self._parts.write(part)
            self.written.update(part.texts(), part.unreadable)


def _tokenise(
    loader: Iterable[LoadedBatch],
    images: int,
    tokenizer: Tokenizer,
    space: TokenSpace,
    parts: PartFolder,
    device: torch.device | str,
    unreadable: UnreadableImages,
) -> set[str]:
    """Tokenises everything in `loader` into parts and returns the keys covered, unreadable images included."""
    tokenizer.to(device).eval()
    title = f"Tokenising {space.num_views} views of each image" if space.num_views else "Tokenising"

    def stored() -> Iterator[LoadedBatch]:
        """The batches whose tokens are stored, before too many unreadable images end the walk."""
        for batch in loader:
            failed = {unreadable_key(i.key, i.description): f"{i.description}: {i.reason}" for i in batch.unreadable}
            with torch.inference_mode():
                ids = encode_for_storing(tokenizer, batch.images, device, space.dtype)
            writer.add(Part(np.array(batch.keys, KEY_DTYPE), ids.reshape(len(batch.keys), *space.row_shape), failed))
            yield batch

    with _PartWriter(parts) as writer:
        for _ in walk(title, stored(), images, unreadable):
            pass
    return writer.written


def _wait(ready: Callable[[], T | None], parts: PartFolder) -> T:
    """Polls until `ready` gives something, for as long as other processes keep adding parts."""
    seen, since = parts.names(), time.monotonic()
    while (result := ready()) is None:
        if (names := parts.names()) != seen:
            seen, since = names, time.monotonic()
        if time.monotonic() - since > SECONDS_WITHOUT_NEWS:
            raise FailedRunError(
                f"No other process has tokenised anything for {SECONDS_WITHOUT_NEWS / 60:.0f} minutes. Check their output; the "
                "same command continues where they stopped, with any number of processes."
            )
        time.sleep(SECONDS_BETWEEN_POLLS)
    return result


def _refuse_changed(source: ImageSource, indices: list[int]) -> None:
    if indices:
        names = ", ".join(source.describe(index) for index in indices[:3])
        raise TokenStoreError(
            f"{len(indices)} images in {source.location} changed while they were tokenised: {names}. Wait until nothing writes to "
            "them any more and run the same command again; the tokens of all others are kept."
        )


def _batches(indices: list[int], batch_size: int, count: int | None) -> list[BatchItem]:
    """All crops of an image come together, so that it is decoded once."""
    numbers = tuple(range(count or 1))
    images = max(1, batch_size // len(numbers))
    return [BatchItem(indices[first : first + images], numbers) for first in range(0, len(indices), images)]
