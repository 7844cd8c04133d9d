"""Whether a store still holds what was written: every byte is read once, and again only when a file of the store has changed.

    STORE/.verified.json    file name to [inode, size, mtime, ctime] of the files that were found right

Whatever writes to a file changes its ctime, which no program can set, so what was verified before need not be read again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from mapet.errors import CheckpointError, StorageError
from mapet.runtime.files import sha256, write_json
from mapet.runtime.json_files import read_json
from mapet.runtime.progress import progress
from mapet.token_store.format import HEADER, IDS, KEYS, Header, damaged

_RECORD = ".verified.json"
_BLOCK_VALUES = 2**24
_SILENT_SECONDS = 2.0


def verify_content(folder: Path, header: Header, keys: np.ndarray, ids: np.ndarray) -> None:
    """Reads both arrays in full, unless that was done since they were written.

    Args:
        folder: Of the store.
        header: Its header.
        keys: (rows,) S32, as in the file.
        ids: (rows, ...) the tokens, as in the file.

    Raises:
        TokenStoreError: A byte differs from what was written, keys are out of order or repeated, or an id is beyond the vocabulary.
    """
    state = _state(folder)
    if state == _verified_state(folder):
        return
    problem = _checksum_problem(folder, header) or _key_problem(keys) or _id_problem(ids, header.space.vocab_size)
    if problem:
        raise damaged(folder, problem, header.space.regions)
    with suppress(StorageError):  # a store may lie where nothing can be written; then it is read again next time
        write_json(folder / _RECORD, state)


def _state(folder: Path) -> dict[str, list[int]]:
    """What changes whenever somebody writes to a file, for each file."""
    stats = {name: (folder / name).stat() for name in (HEADER, KEYS, IDS)}
    return {name: [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}


def _verified_state(folder: Path) -> object:
    with suppress(CheckpointError):
        return read_json(folder / _RECORD)
    return None


def _checksum_problem(folder: Path, header: Header) -> str | None:
    for name in (KEYS, IDS):
        actual = sha256(folder / name)
        if actual != header.sha256[name]:
            return f"{name} has the SHA-256 {actual[:12]}..., written was {header.sha256[name][:12]}..."
    return None


def _key_problem(keys: np.ndarray) -> str | None:
    for first in range(0, len(keys) - 1, _BLOCK_VALUES):
        block = keys[first : first + _BLOCK_VALUES + 1]
        if not (block[1:] > block[:-1]).all():
            return f"{KEYS} holds keys twice, or not in ascending order"
    return None


def _id_problem(ids: np.ndarray, vocab_size: int) -> str | None:
    rows = max(1, _BLOCK_VALUES // max(1, int(np.prod(ids.shape[1:]))))
    with progress("Verifying the store", len(ids), after=_SILENT_SECONDS) as bar:
        for first in range(0, len(ids), rows):
            block = ids[first : first + rows]
            low, high = int(block.min()), int(block.max())
            if low < 0 or high >= vocab_size:
                wrong = low if low < 0 else high
                return f"{IDS} holds the id {wrong}, and a vocabulary of {vocab_size} codes has the ids 0 to {vocab_size - 1}"
            bar.advance(len(block))
    return None
