"""The visual tokens of labelled images: from a store, or made once and held in memory."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import sequential_batches
from mapet.data.regions import FixedCrop
from mapet.data.skipped import UnreadableImages, walk
from mapet.data.source import KEY_LENGTH, ImageSource, sample_keys, subset, with_keys
from mapet.data.views import FixedView
from mapet.errors import DataError, TokenizerError, TokenStoreError
from mapet.evaluation.copies import KeyedImages
from mapet.evaluation.frozen_backbone import Evaluated
from mapet.runtime.json_files import read_json
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.encode import encode
from mapet.token_store.format import HEADER
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import OnlineTokens, StoredTokens
from mapet.tokenizers.base import DESCRIPTION_FILE, Tokenizer
from mapet.tokenizers.load import load_tokenizer

BATCH_SIZE = 64


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of n labelled images.

    Args:
        ids: (n, N_p) int32 in raster order.
        labels: (n,) int64.
        keys: n sample keys, where they are known.
    """

    ids: Tensor
    labels: Tensor
    keys: list[str] = field(default_factory=list)

    @property
    def images(self) -> KeyedImages:
        """The images, without their tokens."""
        return KeyedImages(np.array(self.keys, f"S{KEY_LENGTH}"), self.labels.numpy())


@dataclass
class LabelledTokens(Evaluated):
    """The tokens that a protocol learns from and is tested on.

    Args:
        title: What the user calls the tokenizer.
        train: Of the training images.
        test: Of the test images.
        facts: See `TokenMaker.facts`.
        num_classes: Number of classes.
        device: Where to compute.
    """

    title: str
    train: TokenSplit
    test: TokenSplit
    facts: dict[str, Any]
    num_classes: int
    device: torch.device

    @property
    def image_counts(self) -> tuple[int, int]:
        """See `Evaluated`."""
        return len(self.train.labels), len(self.test.labels)

    @property
    def images(self) -> tuple[KeyedImages, KeyedImages]:
        """See `Evaluated`."""
        return self.train.images, self.test.images


@dataclass(frozen=True)
class TokenMaker:
    """Where tokens come from: a tokenizer, or a store that it filled.

    Args:
        title: What the user calls it.
        source: The tokens.
        run: The pre-training whose tokens these are, if the user named one.
    """

    title: str
    source: StoredTokens | OnlineTokens
    run: RunDirectory | None = None

    @property
    def untrained(self) -> bool:
        """Never: a tokenizer has no initialisation to compare with."""
        return False

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer."""
        return self.source.fingerprint

    @property
    def facts(self) -> dict[str, Any]:
        """The entry of a result about the tokens, as JSON."""
        source = self.source
        return {"tokenizer_fingerprint": self.fingerprint, "vocab_size": source.vocab_size, "grid_size": [*source.grid_size]}

    def split(
        self, images: ImageSource, part: str, *, device: torch.device, workers: int, unreadable: UnreadableImages
    ) -> TokenSplit:
        """The tokens of all readable images, seen through the fixed view.

        Raises:
            DataError: Too many images cannot be read, or all.
            TokenStoreError: The store lacks some of the images.
        """
        if isinstance(self.source, StoredTokens):
            token_split = _look_up(self.source.store, images, part)
        else:
            token_split = _encode(self.source.tokenizer, images, part, device, workers, unreadable)
        if not len(token_split.labels):
            raise DataError(f"None of the {len(images)} {part} images of {images.location} can be read.")
        return token_split


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
    run = run_at(path)
    if run is None:
        _check_folder(path)
        return _tokenizer(load_tokenizer(address), title)
    config = run.read_config()
    for place in (config.get("tokenizer"), run.tokenizer if run.tokenizer.is_dir() else None):
        if place is not None:
            return replace(_tokenizer(load_tokenizer(place), title), run=run)
    if config.get("tokens"):
        return replace(_store(TokenStore.open(config["tokens"]), title), run=run)
    raise TokenizerError(f"The run {path} has no tokenizer: its objective predicts no visual tokens. Give a tokenizer, or a store.")


def run_at(path: Path) -> RunDirectory | None:
    """The run whose directory `path` is: its config.json holds the science; None for everything else."""
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or "science" not in config:
        return None
    run = RunDirectory.existing(path)
    run.read_config()  # refuses a damaged one
    return run


def _check_folder(path: Path) -> None:
    """Refuses a folder of something else: of an exported model, of images."""
    if path.is_dir() and not (path / DESCRIPTION_FILE).is_file() and any(path.iterdir()):
        raise TokenizerError(
            f"{path} is no tokenizer, no token store and no run: it has no {DESCRIPTION_FILE}, no {HEADER} and no config.json of a "
            "run. Give a tokenizer (a folder that `mapet tokenizer` made, or a published file), a token store (the --out of "
            "`mapet tokenize`) or a run (the --out of `mapet pretrain`)."
        )


def _tokenizer(tokenizer: Tokenizer, title: str) -> TokenMaker:
    return TokenMaker(title, OnlineTokens(tokenizer, torch.device("cpu")))


def _store(store: TokenStore, title: str) -> TokenMaker:
    store.check(view=FixedCrop().describe())
    return TokenMaker(title, StoredTokens(store))


def _look_up(store: TokenStore, images: ImageSource, part: str) -> TokenSplit:
    keyed = with_keys(images)
    keys = sample_keys(keyed)
    stored = store.contains(keys)
    missing = [index for index in np.flatnonzero(~stored).tolist() if keys[index] not in store.unreadable]
    if missing:
        raise TokenStoreError(
            f"The token store {store.path} lacks {len(missing):,} of the {len(images):,} {part} images of {images.location}, such "
            f"as {images.describe(missing[0])}. To evaluate tokens, it must hold the training and the test images. "
            f"{_remedy(store, images.location, foreign=part == 'training' and not stored.any())}"
        )
    stored_images = subset(keyed, np.flatnonzero(stored))
    assert stored_images.labels is not None
    keys = sample_keys(stored_images)
    return TokenSplit(store.lookup(keys).flatten(1).int(), torch.from_numpy(stored_images.labels), keys)


def _remedy(store: TokenStore, location: str, foreign: bool) -> str:
    """What completes the store or, where it is of other images or belongs to a run, what makes another."""
    run = run_at(store.path.parent) if store.path.name == "tokens" else None
    tokenizer = "TOK"
    if run is not None:
        tokenizer = run.read_config().get("tokenizer") or (str(run.tokenizer) if run.tokenizer.is_dir() else tokenizer)
    command = f"mapet tokenize {shlex.quote(location)} --split all --tokenizer {shlex.quote(tokenizer)} --out"
    if run is None and not foreign:
        return f"Complete it (only what it lacks is tokenised): {command} {shlex.quote(str(store.path))}"
    direct = f"mapet evaluate tokens {shlex.quote(tokenizer)} {shlex.quote(location)}"
    reason = "This store is the run's own and stays as it is" if run is not None else "This store is of other images"
    return f"{reason}; make another:\n  {command} OTHER_TOKENS\nor give the tokenizer in place of a store:\n  {direct}"


def _encode(
    tokenizer: Tokenizer, images: ImageSource, part: str, device: torch.device, workers: int, unreadable: UnreadableImages
) -> TokenSplit:
    tokenizer.to(device).eval()
    renderer = ViewRenderer(FixedView(tokenizer.image_size, tokenizer.interpolation))
    loader = make_loader(images, renderer, sequential_batches(len(images), BATCH_SIZE), workers, device)
    ids, labels, keys = [], [], []
    for batch in walk(f"Tokenising {part} images", loader, len(images), unreadable, part=f"{part} images"):
        with torch.inference_mode():
            ids.append(encode(tokenizer, batch.images, device).flatten(1).int().cpu())
        labels.append(batch.labels)
        keys += batch.keys
    return TokenSplit(torch.cat(ids), torch.cat(labels), keys)
