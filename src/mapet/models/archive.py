"""The tensors in any file of weights that people publish, read without running what the file says.

safetensors      as it is
torch.save       a zip, or what PyTorch wrote before 1.6: a state dict, nested dicts, or a whole pickled module
TorchScript      the same zip; its code is not looked at

Of a pickle only the description of its tensors is used (`inert_pickle`): the classes of a pickled module need not be installed, and
a hostile file can do no more than be refused, as it is where its pickle names what runs commands or code. Numbers are mapped from
the file, not copied, once their checksums are right.
"""

from __future__ import annotations

import functools
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mapet.errors import ModelError
from mapet.models.inert_pickle import ForbiddenNameError, Inert, Storage, StoredTensor, load_pickle
from mapet.runtime.progress import progress

_ZIP_START = b"PK\x03\x04"
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_NODES, _MOST_DEPTH = 1_000_000, 64
_MOST_REPEATED = 2**24  # numbers of a tensor that repeats those of a smaller storage, as expanded ones do
_WAY_OUT = "Download or copy it again; if it is whole, open it with what wrote it and save its state dict as safetensors."

_HOSTILE = (
    "torch.load with weights_only=False, or pickle, would make the call: do not open it so. Get the weights from where you trust, "
    "as safetensors if they are there."
)

# Where a storage lies in the file: its first byte and its length in bytes.
Locate = Callable[[Storage], tuple[int, int]]


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Every tensor in a file, under its dotted name.

    A pickled module or TorchScript gives the names of its `state_dict`. Dicts and lists are walked through: a training checkpoint
    gives "model.norm.weight" and "optimizer.state.0.exp_avg". Sparse and quantised tensors are left out.

    Args:
        path: A file of safetensors, torch.save or TorchScript.

    Returns:
        Tensors on the CPU in the file's own dtypes. They are mapped from the file: copy them before it changes.

    Raises:
        ModelError: There is no such file, it is damaged, its pickle asks for harm, or it holds no tensors.
    """
    return _read(Path(path), ())


def state_dict_of(path: Path | str, keys: Sequence[str] = ("model", "state_dict", "module")) -> dict[str, Tensor]:
    """The model's tensors in a training checkpoint: those below the first of `keys` that the file has; else all, as `read_tensors`.

    Raises:
        ModelError: As `read_tensors`.
    """
    return _read(Path(path), keys)


def _read(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Give a file of weights: safetensors, torch.save or TorchScript.")
    if path.suffix.lower() == ".onnx":
        raise ModelError(f"{path} is an ONNX file, which is not read here. Give the backbone that it was exported from.")
    try:
        tensors = _read_any(path, keys)
    except ForbiddenNameError as error:
        raise ModelError(f"{path} is refused: {error}. Nothing in it was run. {_HOSTILE}") from error
    except (ModelError, OSError, ValueError, RuntimeError, NotImplementedError, SafetensorError, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ModelError(f"{path} cannot be read as a file of weights: {reason}. {_WAY_OUT}") from error
    if not tensors:
        raise ModelError(f"{path} can be read but holds no tensors. Give the file with the weights.")
    return tensors


def _read_any(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """As `_read`, with messages that are clauses."""
    with path.open("rb") as file:
        start = file.read(16)
        if start[8:9] == b"{":
            return load_file(path)
        if not start.startswith((_ZIP_START, _LEGACY_START)):
            found = start[:8].hex(" ") or "nothing"
            raise ModelError(f"it begins with {found}, as neither safetensors nor torch.save nor TorchScript does")
        mapped = mmap(file.fileno(), 0, access=ACCESS_COPY)  # what is written to the tensors stays in memory
    tree, locate = (_open_zip if start.startswith(_ZIP_START) else _open_legacy)(mapped, path)
    if isinstance(tree, dict):
        tree = next((tree[key] for key in keys if isinstance(tree.get(key), dict | Inert)), tree)
    stored = _flatten(tree)
    numbers_of = functools.cache(functools.partial(_numbers, mapped, locate))
    tensors = {}
    with progress("reading weights", len(stored), after=2.0) as bar:
        for name, tensor in stored.items():
            try:
                tensors[name] = _view(numbers_of, tensor)
            except (RuntimeError, TypeError, ValueError, ModelError) as error:
                raise ModelError(f"its tensor {name[:100]!r} is damaged: {error}") from error
            bar.advance()
    return tensors


def _open_zip(mapped: mmap, path: Path) -> tuple[Any, Locate]:
    """The tree in data.pkl, with each storage in a record of its own."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename.partition("/")[2]: record for record in archive.infolist()}

    @functools.cache
    def locate(name: str) -> tuple[int, int]:
        if name not in records:
            raise ModelError(f"there is no record {name[:100]!r} in the file")
        return _locate_record(mapped, records[name])

    def content(name: str) -> bytes:
        start, length = locate(name)
        return mapped[start : start + length]

    if "data.pkl" not in records:
        raise ModelError("it is a zip without data.pkl, so not one of PyTorch")
    if "byteorder" in records and content("byteorder") != sys.byteorder.encode():
        raise ModelError("it was written by a machine of the other byte order")
    return load_pickle(content("data.pkl")).tree, lambda storage: locate(f"data/{storage.key}")


def _locate_record(mapped: mmap, record: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and length of a record that is whole and, as PyTorch writes it, not compressed."""
    name = repr(record.filename[:100])
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise ModelError(f"its record {name} is compressed, as PyTorch's never are")
    header = mapped[record.header_offset : record.header_offset + 30]
    name_length, extra_length = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = record.header_offset + 30 + name_length + extra_length
    if not header.startswith(_ZIP_START) or start + record.file_size > len(mapped):
        raise ModelError(f"its record {name} is cut off")
    with memoryview(mapped) as whole, whole[start : start + record.file_size] as content:
        if record.CRC and zlib.crc32(content) != record.CRC:  # 0: PyTorch was told to write none
            raise ModelError(f"its record {name} is damaged: the checksum is another")
    return start, record.file_size


def _open_legacy(mapped: mmap, _: Path) -> tuple[Any, Locate]:
    """The tree of a file from before PyTorch 1.6.

    It is five pickles (magic number, version, machine, tree, keys of the storages), then every storage behind its count of numbers.
    """
    trees, storages, position = [], {}, 0
    for _pickle in range(5):
        description = load_pickle(mapped, position)
        trees.append(description.tree)
        storages |= {storage.key: storage for storage in description.storages}
        position = description.end
    _, _, machine, tree, keys = trees
    if not isinstance(machine, dict) or machine.get("little_endian") is not (sys.byteorder == "little"):
        raise ModelError("it was written by a machine of the other byte order")
    found = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            raise ModelError("it holds numbers that it does not describe")
        count = int.from_bytes(mapped[position : position + 8], "little")
        found[key] = position + 8, count * storages[key].dtype.itemsize
        position = sum(found[key])
    if position > len(mapped):
        raise ModelError("it is cut off")
    return tree, lambda storage: found.get(storage.key, (0, 0))


def _flatten(tree: Any) -> dict[str, StoredTensor]:
    """The tensors of a tree under their dotted names."""
    found: dict[str, StoredTensor] = {}
    nodes = 0

    def visit(node: Any, path: tuple[str, ...]) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > _MOST_NODES or len(path) > _MOST_DEPTH:
            raise ModelError(f"it nests more than {_MOST_DEPTH} levels or {_MOST_NODES} entries, or contains itself")
        if isinstance(node, StoredTensor):
            name = ".".join(path)
            if name in found:
                raise ModelError(f"it has two tensors called {name[:100]!r}")
            found[name] = node
        for key, child in _children(node):
            if isinstance(key, str | int):
                visit(child, (*path, str(key)))

    visit(tree, ())
    return found


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    """What a node of the tree holds, by name; of a module, what its `state_dict` would."""
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list | tuple) and not isinstance(node, StoredTensor | Storage):
        yield from enumerate(node)
    elif isinstance(node, Inert) and "_parameters" in node.state:
        passing = node.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers", "_modules"):
            held = node.state.get(kind)
            for key, child in held.items() if isinstance(held, dict) else ():
                if not (kind == "_buffers" and isinstance(passing, list | set) and key in passing):
                    yield key, child
    elif isinstance(node, Inert):
        yield from (node.state if node.origin.startswith("__torch__.") else node.entries).items()


def _numbers(mapped: mmap, locate: Locate, storage: Storage, dtype: torch.dtype) -> Tensor:
    """The content of a storage, (n,), over the file's own bytes; a copy where they are not aligned."""
    start, length = locate(storage)
    if storage.count * storage.dtype.itemsize > length:
        raise ModelError(f"its storage is said to hold {storage.count} numbers and has {length} bytes")
    count = length // dtype.itemsize
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if start % dtype.itemsize:
        return torch.frombuffer(bytearray(mapped[start : start + length]), dtype=dtype, count=count)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)


def _view(numbers_of: Callable[[Storage, torch.dtype], Tensor], tensor: StoredTensor) -> Tensor:
    """The tensor, if it lies within its storage."""
    if not isinstance(tensor.storage, Storage):
        raise ModelError("it has no storage")
    dtype = tensor.storage.dtype if tensor.dtype is None else tensor.dtype
    if not isinstance(dtype, torch.dtype):
        raise ModelError("it has no type")
    numbers = numbers_of(tensor.storage, dtype)
    _check_layout(tensor, len(numbers))
    return numbers.as_strided(tensor.size, tensor.stride, tensor.offset)


def _check_layout(tensor: StoredTensor, available: int) -> None:
    """Refuses a tensor that reaches outside the `available` numbers of its storage, or repeats them beyond any use."""
    size, stride, offset = tensor.size, tensor.stride, tensor.offset
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise ModelError("its shape and its strides do not go together")
    if not all(isinstance(value, int) and 0 <= value < 2**48 for value in (offset, *size, *stride)):
        raise ModelError("its shape, strides or offset are not counts")
    count = math.prod(size)
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if last >= available if count else offset > available:
        raise ModelError(f"it reaches to number {last} of a storage of {available}")
    if count > max(available, _MOST_REPEATED):
        raise ModelError(f"it repeats {available} numbers {count} times over")
