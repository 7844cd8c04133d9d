"""Tokenising some stored crops again to check a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mapet.data.batch import LoadedBatch
from mapet.data.loader import RegionRenderer, make_loader
from mapet.data.order import BatchItem
from mapet.data.skipped import UnreadableImages, walk
from mapet.data.source import ImageSource
from mapet.errors import FailedRunError
from mapet.runtime.seeding import seeded_generator
from mapet.token_store.encode import encode, rendering_for
from mapet.token_store.read import TokenStore
from mapet.tokenizers.base import Tokenizer

# Below this share of equal tokens, near-ties of another device or batch size are no explanation.
LEAST_AGREEMENT = 0.999
NAMED = 5


@dataclass(frozen=True)
class Difference:
    """A crop with other tokens than stored.

    Args:
        image: What its source calls it.
        crop: Number of the crop.
        tokens: How many of its tokens differ.
    """

    image: str
    crop: int
    tokens: int


@dataclass(frozen=True)
class Verification:
    """What came out of tokenising again.

    Args:
        crops: Number of crops that were tokenised again.
        tokens: Number of their tokens.
        differences: Every crop with other tokens, the worst first.
    """

    crops: int
    tokens: int
    differences: list[Difference]

    @property
    def agreement(self) -> float:
        """Share of tokens that are as stored, 0 to 1."""
        return 1 - sum(difference.tokens for difference in self.differences) / max(1, self.tokens)

    def summary(self) -> str:
        """What was compared and what differs, in one line or a few."""
        same = "all" if not self.differences else f"{100 * self.agreement:.3f} % of"
        each = self.tokens // max(1, self.crops)
        lines = [f"{self.crops:,} stored crops tokenised again: {same} {self.tokens:,} tokens are as stored"]
        lines += [f"  {d.image}, view {d.crop}: {d.tokens} of {each} tokens differ" for d in self.differences[:NAMED]]
        more = len(self.differences) - NAMED
        return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)

    def require(self) -> None:
        """Raises FailedRunError where more differs than near-ties can explain."""
        if self.agreement < LEAST_AGREEMENT:
            raise FailedRunError(
                f"{self.summary()}\nThe least that is explained by near-ties (another device or batch size) is "
                f"{LEAST_AGREEMENT:.1%}: this store is wrong for these images and this tokenizer. Move it away and build it again."
            )


def verify_store(
    store: TokenStore,
    source: ImageSource,
    tokenizer: Tokenizer,
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    unreadable: UnreadableImages,
) -> Verification:
    """Tokenises `count` random crops of the images again, from their files, and compares them with what is stored.

    Args:
        store: The store.
        source: Images that it has tokens of.
        tokenizer: That made them; moved to `device`.
        count: How many pairs of image and crop; all if there are fewer.
        seed: Determines which.
        batch_size: Crops per call of the tokenizer.
        workers: Processes that decode images.
        device: Where the tokenizer runs.
        unreadable: Counts the images that can no longer be decoded.

    Raises:
        TokenStoreError: The store is of another tokenizer, or lacks an image.
        DataError: Too many images are unreadable.
    """
    store.check(tokenizer.fingerprint, grid_size=tokenizer.grid_size, vocab_size=tokenizer.vocab_size)
    tokenizer.to(device).eval()
    batches = _drawn(store.match(source), store.num_views or 1, count, seed, batch_size)
    loader = make_loader(source, RegionRenderer(store.regions, rendering_for(tokenizer)), batches, workers)
    total, differences = sum(len(batch.indices) for batch in batches), []
    crops = 0
    for batch in walk("Verifying", loader, total, unreadable):
        differing = _differing(store, tokenizer, batch, device)
        for index, tokens in zip(batch.indices.tolist(), differing.tolist(), strict=True):
            if tokens:
                differences.append(Difference(source.describe(index), batch.views[0], tokens))
        crops += len(batch.keys)
    differences.sort(key=lambda difference: -difference.tokens)
    return Verification(crops, crops * store.grid_size[0] * store.grid_size[1], differences)


def _drawn(usable: list[int], views: int, count: int, seed: int, batch_size: int) -> list[BatchItem]:
    """`count` of all pairs of image and crop, without repetition; a batch has one crop number."""
    pairs = torch.randperm(len(usable) * views, generator=seeded_generator(seed, "verify"))[:count].sort().values
    return [batch for number in range(views) for batch in _of_one_number(pairs, usable, views, number, batch_size)]


def _of_one_number(pairs: Tensor, usable: list[int], views: int, number: int, batch_size: int) -> Iterator[BatchItem]:
    indices = [usable[place] for place in (pairs[pairs % views == number] // views).tolist()]
    for first in range(0, len(indices), batch_size):
        yield BatchItem(indices[first : first + batch_size], (number,))


def _differing(store: TokenStore, tokenizer: Tokenizer, batch: LoadedBatch, device: torch.device | str) -> Tensor:
    """(B,) how many tokens of each crop are not as stored."""
    stored = store.lookup(batch.keys, batch.views[0])
    return (encode(tokenizer, batch.images, device).cpu() != stored).sum(dim=(1, 2))
