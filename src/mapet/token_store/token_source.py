"""Where the visual tokens of a batch come from: a store, a tokenizer that runs beside the training, or nowhere."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from mapet.data.batch import LoadedBatch, UnreadableImage
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.data.views import Rendering
from mapet.token_store.encode import encode, rendering_for
from mapet.token_store.keys import image_keys
from mapet.token_store.read import TokenStore
from mapet.tokenizers.base import Tokenizer


class TokenSource(ABC):
    """The visual tokens of the regions that a batch shows.

    Attributes:
        fingerprint: Of the tokenizer; None where there are no tokens.
        vocab_size: Codes there are.
        grid_size: Tokens of an image, (rows, columns).
        rendering: How the loader renders each region for the tokenizer, beside the backbone's view; None where it need not.
        store: Where all tokens can be read before training; None where they cannot.
    """

    fingerprint: str | None = None
    vocab_size: int = 0
    grid_size: tuple[int, int] = (0, 0)
    rendering: Rendering | None = None
    store: TokenStore | None = None

    @abstractmethod
    def tokens(self, batch: LoadedBatch, device: torch.device) -> Tensor | None:
        """Tokens (B, N_p) int64, on `device`, of exactly the regions in `batch`; None where there are none."""

    def known(self, keys: list[str]) -> np.ndarray:
        """(n,) bool, which sample keys have tokens."""
        return np.ones(len(keys), bool)

    def known_images(self, source: ImageSource, unreadable: UnreadableImages) -> list[int]:
        """Positions in `source` of the images that have tokens; those without are added to `unreadable`.

        Raises:
            DataError: More images are without tokens than may be skipped.
            TokenStoreError: The images are not those of the store.
        """
        return [*range(len(source))]


class NoTokens(TokenSource):
    """For objectives that predict something else."""

    def tokens(self, batch: LoadedBatch, device: torch.device) -> None:
        """None."""


class StoredTokens(TokenSource):
    """Looks tokens up by sample key.

    Args:
        store: Has tokens of every image.
    """

    fingerprint: str

    def __init__(self, store: TokenStore) -> None:
        self.store: TokenStore = store
        self.fingerprint, self.vocab_size, self.grid_size = store.tokenizer_fingerprint, store.vocab_size, store.grid_size

    def tokens(self, batch: LoadedBatch, device: torch.device) -> Tensor:
        """Those of the view that `batch` shows."""
        ids = self.store.lookup(batch.keys, batch.views[0]).flatten(1)
        pinned = ids.pin_memory() if device.type == "cuda" else ids  # else the copy would wait for the device
        return pinned.to(device, non_blocking=True)

    def known(self, keys: list[str]) -> np.ndarray:
        """Those that the store holds."""
        return self.store.contains(keys)

    def known_images(self, source: ImageSource, unreadable: UnreadableImages) -> list[int]:
        """Those that the store holds; the reasons for the others are in it."""
        indices, keys, skipped = self.store.match(source), image_keys(source), []
        for index in np.setdiff1d(range(len(source)), indices).tolist():
            name = source.describe(index)
            reason = self.store.unreadable[keys[index]].removeprefix(f"{name}: ")
            skipped.append(UnreadableImage(index, keys[index], name, reason))
        unreadable.record(skipped)
        return indices


class OnlineTokens(TokenSource):
    """Encodes every region when it is shown.

    Args:
        tokenizer: Moved to `device`, in evaluation mode.
        device: Where it computes.
    """

    fingerprint: str

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer = tokenizer.to(device).eval()
        self.fingerprint, self.rendering = tokenizer.fingerprint, rendering_for(tokenizer)
        self.vocab_size, self.grid_size = tokenizer.vocab_size, tokenizer.grid_size

    def tokens(self, batch: LoadedBatch, device: torch.device) -> Tensor:
        """Of `batch.tokenizer_images`, as the loader rendered them."""
        assert batch.tokenizer_images is not None, "the loader was not given the token source's rendering"
        return encode(self.tokenizer, batch.tokenizer_images, device).flatten(1)
