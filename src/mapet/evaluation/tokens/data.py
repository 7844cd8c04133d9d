"""The visual tokens of labelled images: from a store, or made once and held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mapet.data.crops import FixedCrop
from mapet.data.loader import UnreadableImages, make_loader, sequential_batches
from mapet.data.sources import ImageSource, sample_keys, subset, with_keys
from mapet.data.views import FixedView
from mapet.errors import DataError, TokenizerError, TokenStoreError
from mapet.runtime.progress import progress
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.encode import encode
from mapet.token_store.format import HEADER
from mapet.token_store.read import TokenStore
from mapet.tokenizers.base import Tokenizer
from mapet.tokenizers.load import load_tokenizer

BATCH_SIZE = 64


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of n labelled images.

    Args:
        ids: (n, N_p) int32 in raster order.
        labels: (n,) int64.
    """

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TokenMaker:
    """Where tokens come from: a tokenizer, or a store that it filled.

    Args:
        title: What the user calls it.
        source: One of the two.
        fingerprint: Of the tokenizer.
    """

    title: str
    source: Tokenizer | TokenStore
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """Codes there are."""
        return self.source.vocab_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Tokens of an image, (rows, columns)."""
        return self.source.grid_size

    def split(
        self, images: ImageSource, part: str, *, device: torch.device, workers: int, unreadable: UnreadableImages
    ) -> TokenSplit:
        """The tokens of all readable images, seen through the fixed view.

        Raises:
            DataError: Too many images cannot be read, or all.
            TokenStoreError: The store lacks some of the images.
        """
        if isinstance(self.source, TokenStore):
            found = _look_up(self.source, images)
        else:
            found = _encode(self.source, images, part, device, workers, unreadable)
        if not len(found.labels):
            raise DataError(f"None of the {len(images)} {part} images of {images.location} can be read.")
        return found


def open_tokens(address: str | Path) -> TokenMaker:
    """The tokenizer or the store that a user names.

    Args:
        address: A tokenizer (a folder, a published weights file or a name), a token store, or a run directory, of which the
            tokenizer is taken that it was pre-trained with.

    Raises:
        MapetError: There is none, or it holds tokens of random crops.
    """
    path, title = Path(address), str(address)
    if (path / HEADER).is_file():
        return _store(TokenStore.open(path), title)
    if not (path / "config.json").is_file():
        return _tokenizer(load_tokenizer(address), title)
    run = RunDirectory.existing(path)
    config = run.read_config()
    for place in (config.get("tokenizer"), run.tokenizer if run.tokenizer.is_dir() else None):
        if place is not None:
            return _tokenizer(load_tokenizer(place), title)
    if config.get("tokens"):
        return _store(TokenStore.open(config["tokens"]), title)
    raise TokenizerError(f"The run {path} has no tokenizer: its objective predicts no visual tokens. Give a tokenizer, or a store.")


def _tokenizer(tokenizer: Tokenizer, title: str) -> TokenMaker:
    return TokenMaker(title, tokenizer, tokenizer.fingerprint)


def _store(store: TokenStore, title: str) -> TokenMaker:
    store.check(view=FixedCrop().describe())
    return TokenMaker(title, store, store.tokenizer_fingerprint)


def _look_up(store: TokenStore, images: ImageSource) -> TokenSplit:
    known = with_keys(images)
    try:
        usable = store.match(known)
    except TokenStoreError as error:
        raise TokenStoreError(
            f"{error} To judge tokens, the store must hold the images that are learned from and those that are judged: add --split "
            "all to that command, or give the tokenizer in place of the store."
        ) from None
    chosen = subset(known, usable)
    assert chosen.labels is not None
    return TokenSplit(store.lookup(sample_keys(chosen)).flatten(1).int(), torch.from_numpy(chosen.labels))


def _encode(
    tokenizer: Tokenizer, images: ImageSource, part: str, device: torch.device, workers: int, unreadable: UnreadableImages
) -> TokenSplit:
    tokenizer.to(device).eval()
    batches, pinned = sequential_batches(len(images), BATCH_SIZE), device.type == "cuda"
    loader = make_loader(images, FixedView(tokenizer.image_size, tokenizer.interpolation), batches, workers, pin_memory=pinned)
    ids, labels = [], []
    with progress(f"Tokenising {part} images", len(images)) as bar, torch.inference_mode():
        for batch in loader:
            unreadable.record(batch.unreadable)
            ids.append(encode(tokenizer, batch.images, device).flatten(1).int().cpu())
            labels.append(batch.labels)
            bar.advance(len(batch.keys) + len(batch.unreadable))
    return TokenSplit(torch.cat(ids), torch.cat(labels))
