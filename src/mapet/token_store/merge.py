"""From finished parts to a store, without losing what was there before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mapet.errors import DataError, FailedRunError, TokenStoreError
from mapet.runtime.files import atomic_directory, recover
from mapet.runtime.progress import progress, say
from mapet.token_store.format import HEADER, IDS, KEY_DTYPE, KEYS, TokenSpace, write_header
from mapet.token_store.parts import PartFolder
from mapet.token_store.read import TokenStore

# Tokens that are held in memory at a time while a store is written.
BLOCK_BYTES = 2**29
SILENT_SECONDS = 2.0
_LOST_PART = "A finished part of the tokens became unreadable. Run the same command again: only what was in it is tokenised again."


def existing_store(path: Path, space: TokenSpace) -> TokenStore | None:
    """The store that is to be completed; None if there is none yet, or one beyond use that may be replaced.

    Raises:
        TokenStoreError: Something else lies at `path`, or tokens with another meaning.
    """
    if not recover(path).exists():
        return None
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} if path.is_dir() else {path.name}
    if not names:
        return None
    foreign = sorted(names - {HEADER, KEYS, IDS})
    if foreign or not names & {KEYS, IDS}:
        raise TokenStoreError(
            f"{path} exists and is no token store, or not only: it contains {', '.join((foreign or sorted(names))[:3])}. "
            "Nothing was touched. Choose another --out, or move it away."
        )
    try:
        store = TokenStore.open(path)
    except TokenStoreError as error:
        say(f"{error}\nIt is built again now.")
        return None
    store.check(space.tokenizer_fingerprint, space.view, space.grid_size, space.vocab_size)
    return store


def held_keys(store: TokenStore | None, keys: Iterable[str]) -> set[str]:
    """Those of `keys` that have tokens in `store`."""
    if store is None:
        return set()
    listed = list(keys)
    return {key for key, is_held in zip(listed, store.contains(listed), strict=True) if is_held}


class Coverage:
    """Whether store and parts together cover all wanted keys, be it by tokens or by a record of why there are none.

    Args:
        image_keys: Keys of all images.
        store: What there was before; None if nothing.
        parts: Read again at each call, because other processes add to them.
    """

    def __init__(self, image_keys: Collection[str], store: TokenStore | None, parts: PartFolder) -> None:
        self._parts, self._seen_parts = parts, set()
        self._missing = set(image_keys) - held_keys(store, image_keys)

    def is_complete(self) -> bool:
        """Reads the parts that are new since the last call."""
        for name in set(self._parts.names()) - self._seen_parts:
            self._seen_parts.add(name)
            self._missing -= self._parts.covered(name)
        return not self._missing


def finished_store(path: Path, image_keys: Collection[str]) -> TokenStore | None:
    """The store at `path` if it covers all `image_keys`."""
    try:
        store = TokenStore.open(path, verify=False)
    except TokenStoreError:
        return None
    return store if (held_keys(store, image_keys) | store.unreadable.keys()).issuperset(image_keys) else None


def merge(path: Path, space: TokenSpace, store: TokenStore | None, parts: PartFolder, image_keys: Collection[str]) -> TokenStore:
    """Writes the store from what it had and from all its parts, unless nothing is new, and removes the parts.

    Parts of other images, left by an interrupted build, are merged too: they are as good, and would be lost.

    Raises:
        DataError: Not one image could be decoded.
        FailedRunError: A part became unreadable.
    """
    stored_keys = set(store.keys.astype("U").tolist()) if store else set()
    unreadable = dict(store.unreadable) if store else {}
    for part in parts.read_all():
        stored_keys.update(part.texts())
        unreadable |= part.unreadable
    unreadable = {key: text for key, text in unreadable.items() if key not in stored_keys}
    if not stored_keys:
        raise DataError(f"None of the {len(image_keys)} images can be decoded, for example {next(iter(unreadable.values()))}.")
    if not set(image_keys) <= stored_keys | unreadable.keys():
        raise FailedRunError(_LOST_PART)
    if store is None or len(stored_keys) > len(store) or unreadable != store.unreadable:
        _write_store(path, space, store, parts, np.array(sorted(stored_keys), KEY_DTYPE), unreadable)
    parts.remove()
    return TokenStore.open(path, verify=False)


def _write_store(
    path: Path,
    space: TokenSpace,
    store: TokenStore | None,
    parts: PartFolder,
    keys: np.ndarray,
    unreadable: dict[str, str],
) -> None:
    with atomic_directory(path) as folder:
        np.save(folder / KEYS, keys)
        # Not through a writable memory map: a full disk kills a process that writes through a map, without a word.
        with (folder / IDS).open("wb") as file:
            shape, descr = (len(keys), *space.row_shape), npy.dtype_to_descr(space.dtype)
            npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
            for block in _blocks(space, store, parts, keys):
                file.write(block.data)
        write_header(folder, space, len(keys), unreadable)


def _blocks(space: TokenSpace, store: TokenStore | None, parts: PartFolder, keys: np.ndarray) -> Iterator[np.ndarray]:
    """The tokens of `keys`, in their order and so many at a time as memory is meant for; one block for nearly every store.

    Every block reads all the parts: they are in any order, and in the cache of the operating system.
    """
    rows = max(1, BLOCK_BYTES // (int(np.prod(space.row_shape)) * space.dtype.itemsize))
    with progress("Writing the store", len(keys), after=SILENT_SECONDS) as bar:
        for first in range(0, len(keys), rows):
            block = keys[first : first + rows]
            ids, filled = np.zeros((len(block), *space.row_shape), space.dtype), np.zeros(len(block), bool)
            if store is not None:
                _copy_rows(ids, filled, block, store.keys, store.ids)
            for part in parts.read_all():
                _copy_rows(ids, filled, block, part.keys, part.ids)
            if not filled.all():
                raise FailedRunError(_LOST_PART)
            yield ids
            bar.advance(len(block))


def _copy_rows(ids: np.ndarray, filled: np.ndarray, block: np.ndarray, keys: np.ndarray, tokens: np.ndarray) -> None:
    """Copies the `tokens` of the `keys` in the sorted `block` to their rows in `ids`."""
    rows = np.minimum(np.searchsorted(block, keys), len(block) - 1)
    matches = np.flatnonzero(block[rows] == keys)
    ids[rows[matches]] = tokens[matches]
    filled[rows[matches]] = True
