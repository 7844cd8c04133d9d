"""From finished parts to a store, without losing what was there before."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from mapet.errors import DataError, TokenStoreError
from mapet.runtime.files import atomic_directory, recover
from mapet.runtime.progress import say
from mapet.token_store.format import HEADER, IDS, KEY_DTYPE, KEYS, TokenSpace, write_header
from mapet.token_store.parts import PartFolder
from mapet.token_store.read import TokenStore


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
        store = TokenStore.open(path, verify=True)
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
    return {key for key, known in zip(listed, store.contains(listed), strict=True) if known}


def is_complete(wanted: Collection[str], store: TokenStore | None, parts: PartFolder) -> bool:
    """Whether store and parts together cover all `wanted` keys, be it by tokens or by a record of why there are none."""
    covered = held_keys(store, wanted)
    for part in parts.read_all():
        covered.update(part.texts(), part.unreadable)
    return covered.issuperset(wanted)


def finished_store(path: Path, wanted: Collection[str]) -> TokenStore | None:
    """The store at `path` if it covers all `wanted` keys."""
    try:
        store = TokenStore.open(path)
    except TokenStoreError:
        return None
    return store if (held_keys(store, wanted) | store.unreadable.keys()).issuperset(wanted) else None


def merge(path: Path, space: TokenSpace, store: TokenStore | None, parts: PartFolder, wanted: Collection[str]) -> TokenStore:
    """Writes the store from what it had and from all its parts, unless nothing is new, and removes the parts.

    Parts of other images, left by an interrupted build, are merged too: they are as good, and would be lost.

    Raises:
        DataError: Not one image could be decoded.
    """
    held = set(store.keys.astype("U").tolist()) if store else set()
    unreadable = dict(store.unreadable) if store else {}
    for part in parts.read_all():
        held.update(part.texts())
        unreadable |= part.unreadable
    unreadable = {key: text for key, text in unreadable.items() if key not in held}
    if not held:
        raise DataError(f"None of the {len(wanted)} images can be decoded, for example {next(iter(unreadable.values()))}.")
    if store is None or len(held) > len(store) or unreadable != store.unreadable:
        _write_store(path, space, store, parts, np.array(sorted(held), KEY_DTYPE), unreadable)
    parts.remove()
    return TokenStore.open(path)


def _write_store(
    path: Path,
    space: TokenSpace,
    store: TokenStore | None,
    parts: PartFolder,
    keys: np.ndarray,
    unreadable: dict[str, str],
) -> None:
    # In memory, not through a writable memory map: a full disk kills a process that writes through a map, without a word.
    ids = np.zeros((len(keys), *space.grid_size), space.dtype)
    if store is not None:
        ids[np.searchsorted(keys, store.keys)] = store.ids
    for part in parts.read_all():
        rows = np.minimum(np.searchsorted(keys, part.keys), len(keys) - 1)
        chosen = keys[rows] == part.keys
        ids[rows[chosen]] = part.ids[chosen]
    with atomic_directory(path) as folder:
        np.save(folder / KEYS, keys)
        np.save(folder / IDS, ids)
        write_header(folder, space, len(keys), unreadable)
