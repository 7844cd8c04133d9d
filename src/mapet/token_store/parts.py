"""What an interrupted build leaves behind: finished chunks of tokens beside the place of the store.

    .STORE.parts/<what the tokens mean>/<which images>.npz      keys (n,) S32, ids (n, gh, gw) or (n, K, gh, gw), unreadable (JSON)

A part has the keys of its images, so it stays useful whatever happens to names, order or number of processes,
and a part of another tokenizer is never used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from mapet.runtime.files import atomic_file
from mapet.runtime.regular import open_regular
from mapet.token_store.format import KEY_DTYPE, TokenSpace


@dataclass(frozen=True)
class Part:
    """Some images and their tokens.

    Args:
        keys: (n,) S32, in any order.
        ids: (n, gh, gw) or (n, K, gh, gw), of the token space's dtype.
        unreadable: Key to description of the images of this part that could not be decoded.
    """

    keys: np.ndarray
    ids: np.ndarray
    unreadable: dict[str, str]

    @classmethod
    def concatenate(cls, parts: list[Part]) -> Part:
        """Several parts as one."""
        unreadable = {key: text for part in parts for key, text in part.unreadable.items()}
        return cls(np.concatenate([part.keys for part in parts]), np.concatenate([part.ids for part in parts]), unreadable)

    def texts(self) -> list[str]:
        """The keys as text."""
        return self.keys.astype("U").tolist()


class PartFolder:
    """The parts of the store at `store_path` whose tokens mean `space`."""

    def __init__(self, store_path: Path, space: TokenSpace) -> None:
        self._root = store_path.with_name(f".{store_path.name}.parts")
        meaning = json.dumps(asdict(space), sort_keys=True).encode()
        self._folder = self._root / hashlib.blake2b(meaning, digest_size=8).hexdigest()
        self._space = space

    def names(self) -> list[str]:
        """The names of the parts that are there now."""
        return sorted(path.name for path in self._folder.glob("*.npz"))

    def write(self, part: Part) -> None:
        """Adds a part, atomically."""
        covered = b"".join(sorted(part.keys.tolist())) + json.dumps(sorted(part.unreadable)).encode()
        name = f"{hashlib.blake2b(covered, digest_size=16).hexdigest()}.npz"
        notes = np.frombuffer(json.dumps(part.unreadable).encode(), np.uint8)
        with atomic_file(self._folder / name) as partial, partial.open("wb") as file:
            np.savez(file, keys=part.keys, ids=part.ids, unreadable=notes)

    def read(self, name: str) -> Part | None:
        """The part called `name`; None, and the file removed, if it is damaged."""
        path = self._folder / name
        try:
            with BufferedReader(open_regular(path)) as file, np.load(file, allow_pickle=False) as content:
                part = Part(content["keys"], content["ids"], json.loads(content["unreadable"].tobytes()))
        except Exception:  # of garbled bytes, zipfile, zlib, NumPy and json raise whatever they meet
            part = None
        if part is None or not self._fits(part):
            path.unlink(missing_ok=True)
            return None
        return part

    def _fits(self, part: Part) -> bool:
        """Whether the content of a file is a part of this token space."""
        space, expected = self._space, (len(part.keys), *self._space.row_shape)
        if part.keys.dtype != KEY_DTYPE or part.ids.dtype != space.dtype or part.ids.shape != expected:
            return False
        return isinstance(part.unreadable, dict) and (not part.ids.size or 0 <= part.ids.min() <= part.ids.max() < space.vocab_size)

    def covered(self, name: str) -> set[str]:
        """The keys of the images that the part called `name` is about; cheap, as its tokens are not read."""
        try:
            with BufferedReader(open_regular(self._folder / name)) as file, np.load(file, allow_pickle=False) as content:
                return {*content["keys"].astype("U").tolist(), *json.loads(content["unreadable"].tobytes())}
        except Exception:  # as in `read`
            return set()

    def read_all(self) -> Iterator[Part]:
        """Every part that is whole, one at a time."""
        for name in self.names():
            part = self.read(name)
            if part is not None:
                yield part

    def remove(self) -> None:
        """Removes the parts; those of another token space stay."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # not empty
            self._root.rmdir()
