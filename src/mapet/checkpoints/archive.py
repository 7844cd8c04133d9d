"""The tensors in any file of weights that people publish, read without running code of the file.

safetensors      as it is
torch.save       a zip, or what PyTorch wrote before 1.6: a state dict, nested dicts, or a whole pickled module
TorchScript      the same zip; its code is not read

Pickles are read by `torch.load(weights_only=True)`. The classes that a file names are neither imported nor called: inert stand-ins
take their places, so that the classes of a pickled module need not be installed. Before that, the pickle's limits are checked
(`pickle_limits`), and so is the zip around it: torch maps the numbers of a zip without comparing its checksums.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mapet.checkpoints.pickle_limits import MOST_BYTES, PickleContents, examine
from mapet.checkpoints.pickle_protocols import in_protocol_2
from mapet.checkpoints.stand_ins import flatten, refuse_code, stand_ins, subtree
from mapet.errors import ModelError, in_one_line
from mapet.runtime.progress import progress
from mapet.runtime.regular import open_regular
from mapet.runtime.tensors import load_tensors

_ZIP_START = b"PK\x03\x04"
_LEGACY_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_HEADER = 2**24  # bytes; a hundred thousand tensors need less
_MOST_REPEATED = 2**26  # bytes that tensors may have beyond those of the file, as expanded ones do
_WAY_OUT = "Download or copy it again; if it is whole, open it with what wrote it and save its state dict as safetensors."
_CODE = ("code/", "constants.pkl", "extra/")  # of TorchScript; not read
_WIDTHS = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2}
_WIDTHS |= {"Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1}


class _Record(NamedTuple):
    """Where a record's content lies in the file, in bytes."""

    start: int
    length: int


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Every tensor in a file, under its dotted name.

    A pickled module or TorchScript gives the names of its `state_dict`. Dicts and lists are walked through: a training checkpoint
    gives "model.norm.weight" and "optimizer.state.0.exp_avg".

    Args:
        path: A file of safetensors, torch.save or TorchScript.

    Returns:
        Tensors on the CPU in the file's own dtypes. They are mapped from the file where that can be: copy them before it changes.

    Raises:
        ModelError: There is no such file, it is damaged, its pickle is harmful or needs more work than its size warrants, or it
            holds no tensors.
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
    except (MemoryError, Exception) as error:  # of a damaged file, torch's reader may raise any
        if isinstance(error, ModelError) and str(path) in str(error):
            raise
        raise ModelError(f"{path} cannot be read as a file of weights: {in_one_line(error)}. {_WAY_OUT}") from error
    if odd := next((name for name in tensors if not name.isprintable()), None):
        raise ModelError(f"{path} has a tensor called {odd!r:.100}: no weights have control characters in their names. {_WAY_OUT}")
    if not tensors:
        raise ModelError(f"{path} can be read but holds no tensors. Give the file with the weights.")
    return tensors


def _read_any(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    """As `_read`, with messages that are clauses."""
    with open_regular(path) as file:
        start = file.read(32)
        if start[8:9] == b"{":
            if int.from_bytes(start[:8], "little") > _MOST_HEADER:
                raise ModelError(f"it describes itself in more than {_MOST_HEADER} bytes")
            return load_tensors(path)
        zipped, legacy = start.startswith(_ZIP_START), start.startswith(b"\x80") and _LEGACY_NUMBER in start
        if not zipped and not legacy:
            first_bytes = start[:8].hex(" ") or "nothing"
            raise ModelError(f"it begins with {first_bytes}, as neither safetensors nor torch.save nor TorchScript does")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            tree = _open_zip(mapped, path) if zipped else _open_legacy(mapped, path)
    tensors = flatten(subtree(tree, keys))
    _check_sizes(tensors, path.stat().st_size)
    # where numbers are not aligned, as in a zip that another program wrote, they are copied
    return {name: value.clone() if value.data_ptr() % value.itemsize else value for name, value in tensors.items()}


def _open_zip(mapped: mmap, path: Path) -> Any:
    """The tree in data.pkl, with the numbers mapped from the file."""
    records = _checked_records(mapped, path)
    for name in ("data.pkl", "version"):
        if name not in records:
            raise ModelError(f"it is a zip without {name}, so not one of PyTorch")
    start, length = records["data.pkl"]
    pickled = original = mapped[start : start + length]
    if _protocol(pickled) > 2:
        pickled, _ = in_protocol_2(pickled)
    contents = examine(pickled)
    for kind, of_type, key, _, count, *_ in map(_storage, contents.references):
        if kind != "storage" or f"data/{key}" not in records:
            raise ModelError(f"there is no record 'data/{str(key)[:100]}' in the file")
        if count * _width(of_type) > records[f"data/{key}"].length:
            raise ModelError(f"its storage '{key[:100]}' should hold {count} numbers and has less")
    # torch would take it for another format, or cannot read its pickle
    if "constants.pkl" in records or path.suffix == ".safetensors" or pickled is not original:
        return _load(_copy(mapped, records, pickled), contents, path)
    return _load(path, contents, path, mapped=True)


def _load(source: Path | io.BytesIO, contents: PickleContents, path: Path, *, mapped: bool = False) -> Any:
    refuse_code(contents.names, path)
    with torch.serialization.safe_globals([*stand_ins(contents.names)]):
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except UnpicklingError as error:  # whose message advises to load without the limit
            raise ModelError(
                "its pickle needs operations that torch does not allow for files of weights, such as a call of an object in it"
            ) from error


def _copy(mapped: mmap, records: Mapping[str, _Record], pickled: bytes) -> io.BytesIO:
    """The archive with this pickle, without the constants and code of TorchScript, which leaves what torch.save writes.

    torch.load would hand a file with code to torch.jit.load, which compiles it.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, record in records.items():
            if name in ("version", "byteorder") or name.startswith("data/"):
                archive.writestr(f"archive/{name}", mapped[record.start : record.start + record.length])
    copy.seek(0)
    return copy


def _protocol(pickled: bytes | bytearray | mmap) -> int:
    return pickled[1] if pickled[:1] == b"\x80" and len(pickled) > 1 else 0


def _checked_records(mapped: mmap, path: Path) -> dict[str, _Record]:
    """The records by their names in the archive's one folder; each whole, and not compressed, as PyTorch writes them."""
    with zipfile.ZipFile(path) as archive:
        infos, comment = archive.infolist(), archive.comment
    folders = {record.filename.partition("/")[0] for record in infos}
    if len({record.filename.lower() for record in infos}) < len(infos) or len(folders) > 1 or comment:
        raise ModelError("its records are not those that PyTorch writes")
    records: dict[str, _Record] = {}
    if sum(record.compress_size for record in infos) > len(mapped):
        raise ModelError("its records are cut off or overlap")
    with progress("checking weights", len(infos), after=2.0) as bar:
        for record in infos:
            records[record.filename.partition("/")[2]] = _checked(mapped, record)
            bar.advance()
    return records


def _checked(mapped: mmap, record: zipfile.ZipInfo) -> _Record:
    name = repr(record.filename[:100])
    header = mapped[record.header_offset : record.header_offset + 30]
    name_length, extra_length = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = record.header_offset + 30 + name_length + extra_length
    if not header.startswith(_ZIP_START) or start + record.compress_size > len(mapped):
        raise ModelError(f"its record {name} is cut off")
    if record.filename.partition("/")[2].startswith(_CODE):
        return _Record(start, record.compress_size)
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise ModelError(f"its record {name} is compressed, as PyTorch's never are")
    with memoryview(mapped) as whole, whole[start : start + record.file_size] as content:
        if record.CRC and zlib.crc32(content) != record.CRC:  # 0: PyTorch was configured to write none
            raise ModelError(f"its record {name} is damaged: the checksum is another")
    return _Record(start, record.file_size)


def _open_legacy(mapped: mmap | bytearray, path: Path) -> Any:
    """The tree of a file from before PyTorch 1.6.

    It is five pickles (magic number, version, machine, tree, keys of the storages), then every storage behind its count of numbers.
    torch's reader does not take the classes of pickled modules, which such files keep with their source: each reference to one is
    replaced by a call that gives its stand-in.
    """
    if _protocol(mapped) > 2:
        return _open_legacy(_legacy_in_protocol_2(mapped), path)
    pickles, position = [], 0
    for _ in range(5):
        pickles.append(examine(bytes(mapped[position : position + MOST_BYTES])))
        start, position = position, position + pickles[-1].end
        if len(pickles) == 4:
            tree_start = start
    _, _, machine, tree, keys = pickles
    if dict(zip(machine.constants, machine.constants[1:], strict=False)).get("little_endian") is not (sys.byteorder == "little"):
        raise ModelError("it was written by a machine of the other byte order")
    _check_storages(tree, keys, mapped, position)
    if not tree.modules and isinstance(mapped, mmap):
        return _load(path, tree, path)
    content = bytearray(mapped)
    for start, end in reversed(tree.modules):
        reference = content[tree_start + start : tree_start + end - 1]
        content[tree_start + start : tree_start + end] = b"cmapet\nclass_of\n" + reference + b"\x85R"
    if tree.modules:
        tree.names["mapet", "class_of"] = None
    return _load(io.BytesIO(content), tree, path)


def _legacy_in_protocol_2(mapped: mmap | bytearray) -> bytearray:
    content, position = bytearray(), 0
    for _ in range(5):
        pickled, length = in_protocol_2(bytes(mapped[position : position + MOST_BYTES]))
        content, position = content + pickled, position + length
    return content + mapped[position:]


def _check_storages(tree: PickleContents, keys: PickleContents, mapped: mmap | bytearray, position: int) -> None:
    """Refuses legacy files whose storages are not all there, at `position` and behind it."""
    described = {key: (_width(of_type), count) for _, of_type, key, _, count, *_ in map(_storage, tree.references) if key}
    storage_keys = [key for key in keys.constants if isinstance(key, str)]
    if set(storage_keys) != set(described):
        raise ModelError("the storages that it describes are not those that it holds")
    for key in storage_keys:
        width, count = described[key]
        if int.from_bytes(mapped[position : position + 8], "little") != count:
            raise ModelError(f"its storage {key[:100]!r} should hold {count} numbers and does not")
        position += 8 + count * width
    if position > len(mapped):
        raise ModelError("it is cut off")


def _storage(reference: Any) -> tuple[Any, ...]:
    """The parts of a reference to a storage: kind, type, key, device, count, and a view of it in legacy files."""
    match reference:
        case ("module", *_):
            return "module", None, None, None, 0
        case ("storage", ("torch" | "torch.storage", _), str(), str(), int(count)) if count >= 0:
            return tuple(reference)
        case ("storage", ("torch" | "torch.storage", _), str(), str(), int(count), None) if count >= 0:
            return tuple(reference)
    raise ModelError("it refers to something that is not a storage, or to one without a name, a type or a length")


def _width(storage_type: Any) -> int:
    width = _WIDTHS.get(storage_type[1].removesuffix("Storage")) if storage_type else 0
    if width is None:
        raise ModelError(f"it has a storage of {storage_type[1][:100]}, which is not read here")
    return width


def _check_sizes(tensors: dict[str, Tensor], size: int) -> None:
    """Refuses tensors that have far more numbers than the file, by repeating some."""
    total = sum(math.prod(value.shape) * value.itemsize for value in tensors.values())
    if total > size + _MOST_REPEATED:
        raise ModelError(f"it repeats its numbers: its tensors have {total} bytes, the file {size}")
