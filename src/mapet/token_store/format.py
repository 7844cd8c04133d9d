"""The format of a token store on disk.

    STORE/
      header.json   format version, tokenizer, view, grid, vocabulary, unreadable images, SHA-256 of both arrays and of itself
      keys.npy      (rows,) S32, ascending: the content hash of every image
      ids.npy       (rows, gh, gw) uint16, or int32 above 65,536 codes: the visual tokens, in the order of the keys;
                    (rows, K, gh, gw) where tokens of K crops of every image are stored

Both arrays are memory-mapped, so a store of any size opens at once and is shared between processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mapet.data.regions import Regions, regions_from
from mapet.data.source import KEY_LENGTH
from mapet.errors import SettingsError, TokenStoreError
from mapet.runtime.files import sha256, write_json
from mapet.runtime.json_files import parse_json, sealed, unsealed
from mapet.runtime.regular import open_regular, read_text

T = TypeVar("T")

FORMAT = "mapet token store"
VERSION = 2
HEADER, KEYS, IDS = "header.json", "keys.npy", "ids.npy"
KEY_DTYPE = np.dtype(f"S{KEY_LENGTH}")
LARGEST_UINT16_VOCABULARY = 65_536
LARGEST_SIZE = 2**31
_FIELDS = 6


@dataclass(frozen=True)
class TokenSpace:
    """What a token of a store means: two stores with the same one can be mixed, any others cannot.

    Args:
        tokenizer_fingerprint: SHA-256 in hex over everything that makes the tokenizer.
        tokenizer: Its settings, for people.
        view: Which part of an image is tokenised, as `Regions.describe` returns it. The tokenizer sets the size.
        grid_size: Tokens of what is seen, (rows, columns).
        vocab_size: Ids are 0 to `vocab_size - 1`.
    """

    tokenizer_fingerprint: str
    tokenizer: dict[str, Any]
    view: dict[str, Any]
    grid_size: tuple[int, int]
    vocab_size: int

    @property
    def regions(self) -> Regions:
        """The view, as something that can be looked through."""
        return regions_from(self.view)

    @property
    def num_views(self) -> int | None:
        """Crops that are stored of every image; None where the one view of an image has no axis of its own."""
        return self.view.get("count")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of the tokens of an image: (gh, gw), or (K, gh, gw)."""
        return self.grid_size if self.num_views is None else (self.num_views, *self.grid_size)

    @property
    def dtype(self) -> np.dtype:
        """The smallest type of the format that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= LARGEST_UINT16_VOCABULARY else np.int32)


@dataclass(frozen=True)
class Header:
    """The content of header.json.

    Args:
        space: What the tokens mean.
        rows: Number of stored images.
        unreadable: Key to description of the images that could not be decoded and have no tokens.
        sha256: File name to SHA-256 of the two arrays.
    """

    space: TokenSpace
    rows: int
    unreadable: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def require_sense(self) -> None:
        """Raises a ValueError that names the first field whose value no store can have."""
        sizes = {"rows": self.rows + 1, "vocab_size": self.space.vocab_size, "grid_size": min(self.space.grid_size)}
        for name, size in sizes.items():
            if not 1 <= size <= LARGEST_SIZE:
                raise ValueError(f"{name}, which is out of range")
        if not all(isinstance(text, str) for text in self.unreadable.values()):
            raise ValueError("unreadable, which holds something else than text")


def write_header(folder: Path, space: TokenSpace, rows: int, unreadable: dict[str, str]) -> None:
    """Writes the header of the arrays that already lie in `folder`."""
    header = Header(space, rows, unreadable, {name: sha256(folder / name) for name in (KEYS, IDS)})
    content = {"format": FORMAT, "version": VERSION, **asdict(header)}
    write_json(folder / HEADER, sealed(content))


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON gives it back: tuples become lists, so that what was read can be compared with what is in memory."""
    return json.loads(json.dumps(value))


def read_header(folder: Path) -> Header:
    """Reads and checks header.json.

    Raises:
        TokenStoreError: There is none, or it belongs to something else, or to another version of the format, or is damaged.
    """
    content = _read_json(folder)
    if content.get("format") != FORMAT:
        raise TokenStoreError(f"{folder} is not a token store: its {HEADER} belongs to something else. {build_hint()}")
    if content.get("version") != VERSION:
        raise TokenStoreError(
            f"The token store {folder} has format version {content.get('version')}; this mapet reads version {VERSION}. "
            f"Build it again (the old one is replaced): {build_command(folder)}"
        )
    content = _unsealed(folder, content)
    try:
        space = content["space"]
        rows, columns = space["grid_size"]
        header = Header(
            TokenSpace(
                _of_type(str, space["tokenizer_fingerprint"]),
                _of_type(dict, space["tokenizer"]),
                _of_type(dict, space["view"]),
                (_of_type(int, rows), _of_type(int, columns)),
                _of_type(int, space["vocab_size"]),
            ),
            _of_type(int, content["rows"]),
            _of_type(dict, content["unreadable"]),
            {name: _of_type(str, content["sha256"][name]) for name in (KEYS, IDS)},
        )
        regions_from(header.space.view)
        header.require_sense()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(folder, f"{HEADER} lacks or garbles {error}") from error
    except SettingsError as error:
        raise damaged(folder, f"{HEADER} is garbled, or of another version. {str(error).rstrip('.')}") from error
    return header


def _of_type(kind: type[T], value: Any) -> T:
    """`value`, which must be of that very type: true is no number."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} in place of a value of type {kind.__name__}")
    return value


def read_arrays(folder: Path, header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Memory-maps both arrays and checks that they are whole and of the size that the header announces.

    Returns:
        The keys (rows,) S32 and the token ids (rows, gh, gw) or (rows, K, gh, gw).

    Raises:
        TokenStoreError: A file is missing, truncated, or of another shape or type.
    """
    try:
        keys = _map_array(folder, KEYS, (header.rows,), KEY_DTYPE)
        ids = _map_array(folder, IDS, (header.rows, *header.space.row_shape), header.space.dtype)
    except _DamagedFileError as error:
        raise damaged(folder, str(error), header.space.regions) from error
    return keys, ids


def damaged(folder: Path, what: str, regions: Regions | None = None) -> TokenStoreError:
    """The error for a store that was complete once and is not any more."""
    return TokenStoreError(
        f"The token store {folder} is damaged: {what}. Copy it again, or build it again (the damaged one is replaced): "
        f"{build_command(folder, regions=regions)}"
    )


def build_hint(out: str | Path = "STORE") -> str:
    """The command that builds a store, as the end of a message."""
    return f"To build one: {build_command(out)}"


def build_command(out: str | Path = "ANOTHER_STORE", data: str = "DATA", regions: Regions | None = None) -> str:
    """The command that builds a store of these crops, or brings it up to date; of the fixed ones if none are given."""
    return f"mapet tokenize {data} --tokenizer TOK{regions.options() if regions else ''} --out {out}"


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not folder.exists():
        raise TokenStoreError(f"There is no token store at {folder}. {build_hint(out=folder)}")
    if not path.exists():
        raise TokenStoreError(f"{folder} is not a token store: it has no {HEADER}. {build_hint()}")
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{HEADER} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise TokenStoreError(f"{folder} is not a token store: its {HEADER} belongs to something else. {build_hint()}")
    return content


def _unsealed(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The entries without their checksum; stores of earlier releases have none, and no other entry in its place."""
    with suppress(TokenStoreError):
        entries = unsealed(content, folder / HEADER, TokenStoreError)
        if len(entries) <= _FIELDS:
            return entries
    raise damaged(folder, f"{HEADER} is not what was written (cut off or changed)")


class _DamagedFileError(Exception):
    """What is wrong with a file, before it is known which command repairs it."""


def _map_array(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    path = folder / name
    try:
        open_regular(path).close()
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise _DamagedFileError(f"{name} is missing") from error
    except Exception as error:  # of a garbled header NumPy raises whatever its parser meets
        raise _DamagedFileError(f"{name} is truncated or no array ({path.stat().st_size:,} bytes)") from error
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != dtype:
        actual = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise _DamagedFileError(f"{name} holds {actual}, announced is {shape} {dtype}")
    surplus = path.stat().st_size - array.offset - array.nbytes
    if surplus:
        raise _DamagedFileError(f"{name} is {surplus:,} bytes longer than announced")
    return array
