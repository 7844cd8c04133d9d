"""Stored visual tokens, looked up by what an image contains."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapet.data.regions import Regions, regions_from
from mapet.data.source import KEY_LENGTH, ImageSource
from mapet.errors import SettingsError, TokenStoreError
from mapet.runtime.files import recover
from mapet.token_store.content import verify_content
from mapet.token_store.format import (
    KEY_DTYPE,
    Header,
    as_json,
    build_command,
    read_arrays,
    read_header,
)
from mapet.token_store.keys import image_keys

NAMED_IN_A_MESSAGE = 3

Keys = Sequence[str | bytes] | np.ndarray


class TokenStore:
    """The visual tokens of a collection of images, memory-mapped and read-only.

    Made by `TokenStore.open` or `build_store`. `len(store)` is the number of images, `key in store` whether one has tokens.
    """

    def __init__(self, path: Path, header: Header, keys: np.ndarray, ids: np.ndarray) -> None:
        self.path, self.header = path, header
        self._keys, self._ids = keys, ids

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> TokenStore:
        """Opens the store at `path`.

        The first time, both arrays are read in full and compared with their checksums. A store that has not changed since then
        opens in milliseconds, whatever its size.

        Args:
            path: The folder that `mapet tokenize` wrote.
            verify: False leaves the content unread; structure and sizes are always checked.

        Raises:
            TokenStoreError: There is no store, or it is damaged or of another version of the format.
        """
        path = recover(path)
        header = read_header(path)
        keys, ids = read_arrays(path, header)
        if verify:
            verify_content(path, header, keys, ids)
        return cls(path, header, keys, ids)

    def __len__(self) -> int:
        return self.header.rows

    def __contains__(self, sample_key: str | bytes) -> bool:
        return bool(self.contains([sample_key])[0])

    def __repr__(self) -> str:
        views = f"{self.num_views} views, " if self.num_views else ""
        return f"TokenStore({str(self.path)!r}, {len(self)} images, {views}grid {self.grid_size}, {self.vocab_size} codes)"

    @property
    def vocab_size(self) -> int:
        """Ids are 0 to `vocab_size - 1`."""
        return self.header.space.vocab_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Tokens of what is seen of an image, (rows, columns)."""
        return self.header.space.grid_size

    @property
    def num_views(self) -> int | None:
        """Crops of every image whose tokens are stored, numbered from 0; None for the one fixed view."""
        return self.header.space.num_views

    @property
    def tokenizer_fingerprint(self) -> str:
        """The fingerprint of the tokenizer that made the tokens, SHA-256 in hex."""
        return self.header.space.tokenizer_fingerprint

    @property
    def view(self) -> dict[str, Any]:
        """Which part of every image was tokenised, as `Regions.describe` returns it."""
        return self.header.space.view

    @property
    def regions(self) -> Regions:
        """The same as an object: `regions.region(width, height, key, view_index)` gives the region of an image."""
        return self.header.space.regions

    @property
    def unreadable(self) -> dict[str, str]:
        """Sample key to description of the images that could not be decoded."""
        return self.header.unreadable

    @property
    def keys(self) -> np.ndarray:
        """(rows,) S32: the sample keys, ascending."""
        return self._keys

    @property
    def ids(self) -> np.ndarray:
        """(rows, gh, gw), or (rows, K, gh, gw), uint16 or int32: all tokens, in the order of `keys`, on disk."""
        return self._ids

    def contains(self, sample_keys: Keys) -> np.ndarray:
        """Which of n sample keys have tokens here: (n,) bool."""
        return self._find(sample_keys)[1]

    def lookup(self, sample_keys: Keys, views: int | Sequence[int] | np.ndarray | Tensor | None = None) -> Tensor:
        """The tokens of the images with these keys.

        Args:
            sample_keys: n content hashes, in any order, repeated or not: text, bytes, or an array of them such as `store.keys`.
            views: Of a store of K crops an image, which of them is meant: one number for all images, or n. A store of the fixed
                view needs none, and takes 0.

        Returns:
            (n, gh, gw) int64, on the CPU.

        Raises:
            TokenStoreError: A key or a view is not in the store, or the view is missing.
        """
        numbers = self._numbers(views, len(sample_keys))
        rows, stored = self._find(sample_keys)
        if not stored.all():
            missing = [_as_text(key) for key, is_stored in zip(sample_keys, stored, strict=True) if not is_stored]
            raise TokenStoreError(
                f"The token store {self.path} has no tokens for {len(missing)} of {len(stored)} requested images (sample keys "
                f"{_first_names(missing)}): they changed or were added after it was built. Bring it up to date: {self._rebuild()}"
            )
        ids = self._ids[rows] if self.num_views is None else self._ids[rows, numbers]
        return torch.from_numpy(ids.astype(np.int64))

    def check(
        self,
        tokenizer_fingerprint: str | None = None,
        view: Mapping[str, Any] | None = None,
        grid_size: tuple[int, int] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Refuses to be used for something else than it was built for; what is None is not compared.

        Raises:
            TokenStoreError: Tokenizer, view, grid or vocabulary differ; the message has both values and a remedy.
        """
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise TokenStoreError(
                f"The token store {self.path} was made by the tokenizer {self._describe_tokenizer()}, but the tokenizer given is "
                f"{tokenizer_fingerprint[:12]}. Give the one it was made by, or build a store for yours: {self._build_other()}"
            )
        if view is not None and as_json(view) != self.view:
            raise TokenStoreError(
                f"The token store {self.path} holds tokens of the view {_compact(self.view)}, but the images are shown as "
                f"{_compact(view)}: tokens and patches would not lie on each other. Choose the stored view, or build a store for "
                f"yours: {build_command(regions=_regions_or_none(view))}"
            )
        if grid_size is not None and tuple(grid_size) != self.grid_size:
            raise TokenStoreError(
                f"The token store {self.path} holds {_grid(self.grid_size)} tokens an image, but the backbone makes "
                f"{_grid(grid_size)} patches. Choose image and patch size so that image size / patch size is "
                f"{_grid(self.grid_size)}, or build a store with a tokenizer for {_grid(grid_size)}: {self._build_other()}"
            )
        if vocab_size is not None and vocab_size != self.vocab_size:
            raise TokenStoreError(
                f"The token store {self.path} has a vocabulary of {self.vocab_size} codes, but {vocab_size} are set. Set "
                f"vocab_size to {self.vocab_size}, or build a store with a tokenizer of {vocab_size} codes: {self._build_other()}"
            )

    def match(self, source: ImageSource) -> list[int]:
        """Finds out which images of `source` can be trained on.

        Names, order and file times do not matter: an image is what it contains.

        Args:
            source: The images; each is read, unless the source has its keys (`with_keys`).

        Returns:
            The indices of all images that have tokens, ascending; those recorded as unreadable are left out.

        Raises:
            TokenStoreError: An image changed or is new since the store was built, or all of them are unreadable.
        """
        keys = image_keys(source)
        stored = self.contains(keys)
        unknown = [index for index in np.flatnonzero(~stored).tolist() if keys[index] not in self.unreadable]
        if unknown:
            names = _first_names([source.describe(index) for index in unknown])
            raise TokenStoreError(
                f"{len(unknown)} of the {len(source)} images in {source.location} changed or are new since the token store "
                f"{self.path} was built: {names}. Bring it up to date (only these are tokenised): "
                f"{self._rebuild(source.location)}"
            )
        if not stored.any():
            raise TokenStoreError(
                f"None of the {len(source)} images in {source.location} could be decoded when the token store {self.path} was "
                "built. Repair the images and tokenise them again, or use others."
            )
        return np.flatnonzero(stored).tolist()

    def _find(self, sample_keys: Keys) -> tuple[np.ndarray, np.ndarray]:
        """For n keys: their rows (n,) int64, arbitrary where the key is unknown, and whether each is known (n,) bool."""
        if not len(sample_keys) or not len(self):
            return np.zeros(len(sample_keys), np.int64), np.zeros(len(sample_keys), bool)
        encoded = [key if isinstance(key, bytes) else key.encode(errors="replace") for key in sample_keys]
        whole = np.array([len(key) == KEY_LENGTH for key in encoded])
        requested = np.array(encoded, KEY_DTYPE)
        rows = np.minimum(np.searchsorted(self._keys, requested), len(self) - 1)
        return rows, (self._keys[rows] == requested) & whole

    def _describe_tokenizer(self) -> str:
        settings = self.header.space.tokenizer
        return f"{self.tokenizer_fingerprint[:12]} ({textwrap.shorten(_compact(settings), 160, placeholder=' ...')})"

    def _numbers(self, views: int | Sequence[int] | np.ndarray | Tensor | None, images: int) -> np.ndarray:
        """(n,) int64, the view meant for each image."""
        allowed = self.num_views or 1
        if views is None and self.num_views is not None:
            raise TokenStoreError(
                f"The token store {self.path} holds tokens of {allowed} views of every image. Give the view: "
                f"lookup(sample_keys, views), with one number from 0 to {allowed - 1} for all images or one for each."
            )
        numbers = np.broadcast_to(np.asarray(0 if views is None else views, np.int64), (images,))
        if images and not (numbers.min() >= 0 and numbers.max() < allowed):
            wrong = numbers.max() if numbers.min() >= 0 else numbers.min()
            raise TokenStoreError(
                f"The token store {self.path} holds no view {wrong} of an image; allowed: 0 to {allowed - 1}. For more, build a "
                f"store with more --views: {self._build_other()}"
            )
        return numbers

    def _rebuild(self, data: str = "DATA") -> str:
        return build_command(self.path, data, self.regions)

    def _build_other(self) -> str:
        return build_command(regions=self.regions)


def _as_text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode(errors="replace")


def _regions_or_none(view: Mapping[str, Any]) -> Regions | None:
    try:
        return regions_from(view)
    except SettingsError:
        return None


def _first_names(names: Sequence[str]) -> str:
    more = len(names) - NAMED_IN_A_MESSAGE
    return ", ".join(names[:NAMED_IN_A_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def _grid(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _compact(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())
