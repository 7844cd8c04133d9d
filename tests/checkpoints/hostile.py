"""Small files that ask for much, each named after what it does; and what reading them costs, in a process with limits.

`read_all` reads every file in a folder and writes "name seconds MiB outcome" a line; the process may take 4 GiB in all.
"""

from __future__ import annotations

import json
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

PROTO, STOP = b"\x80\x02", b"."
MEMORY = 4 * 2**30


def name(module: str, attribute: str) -> bytes:
    """The operation that asks for module.attribute."""
    return f"c{module}\n{attribute}\n".encode()


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def get(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def dict_of(count: int) -> bytes:
    return b"}" + put(0) + b"(" + b"".join(integer(number) + b"K\x00" for number in range(count)) + b"u"


ORDERED = name("collections", "OrderedDict")
TENSOR = name("torch._utils", "_rebuild_tensor_v2")
SIZES = b"K\x00" + integer(4) + b"\x85" + b"K\x01\x85\x89" + ORDERED + b")R"


def storage(count: bytes = integer(4), key: str = "0", kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + count + b"tQ"


def tensor(*, of: bytes | None = None, sizes: bytes = SIZES) -> bytes:
    return TENSOR + b"(" + (storage() if of is None else of) + sizes + b"tR"


def copies_of(function: bytes, argument: bytes, times: int) -> bytes:
    """A list of many calls of `function` with one and the same large argument."""
    head = function + put(1) + argument + put(0) + b"\x85" + put(2)
    return b"](" + head + (get(1) + get(2) + b"R") * times + b"e"


def listed(content: bytes, times: int) -> bytes:
    return b"](" + content * times + b"e"


def zip_of(data: bytes, path: Path, **records: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for record, content in {"data.pkl": PROTO + data + STOP, "version": b"3\n", "data/0": bytes(16), **records}.items():
            archive.writestr(f"archive/{record}", content)


def legacy(data: bytes, path: Path, keys: bytes = b"]", numbers: bytes = b"") -> None:
    start = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19..\x80\x02M\xe9\x03."[:15] + b"\x80\x02M\xe9\x03."
    machine = pickle.dumps({"protocol_version": 1001, "little_endian": True}, protocol=2)
    path.write_bytes(start + machine + PROTO + data + STOP + PROTO + keys + STOP + numbers)


def safetensors_of(header: dict, path: Path, content: bytes = b"") -> None:
    words = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words + content)


def empty_tensors(count: int) -> bytes:
    """Many tensors of one storage of no numbers, by the fewest bytes."""
    sizes = b"K\x00" + b"K\x00\x85" + b"K\x01\x85\x89" + ORDERED + b")R"
    return (
        b"]("
        + TENSOR
        + put(1)
        + b"("
        + storage(integer(0))
        + sizes
        + b"t"
        + put(2)
        + b"R"
        + (get(1) + get(2) + b"R") * count
        + b"e"
    )


def doubled(times: int) -> bytes:
    start = b"](" + tensor() + b"e" + put(0)
    return start + b"".join(b"\x85" + put(level + 1) + get(level) + b"\x86" + put(level + 1) for level in range(times))


def module_of_blocks(count: int) -> bytes:
    """A state dict with one tensor under each of many names of blocks."""
    entries = b"".join(text(f"blocks.{number}.attn.qkv.weight") + get(7) for number in range(count))
    first = text("patch_embed.proj.weight") + tensor() + put(7)
    return b"}(" + first + entries + b"u"


ZIPS: dict[str, bytes] = {
    "dict updates": b"](" + dict_of(5_000) + ORDERED + b")R" + put(3) + get(0) + (b"b" + get(0)) * 20_000 + b"be",
    "ordered dicts of one dict": copies_of(ORDERED, dict_of(5_000), 20_000),
    "sets of one list": copies_of(name("builtins", "set"), b"](" + b"".join(map(integer, range(5_000))) + b"e", 20_000),
    "counters of one dict": copies_of(name("collections", "Counter"), dict_of(5_000), 20_000),
    "encodings of one text": b"](" + name("_codecs", "encode") + put(1) + text("x" * 10**6) + text("latin1") + b"\x86" + put(2)
    + (get(1) + get(2) + b"R") * 100_000 + b"e",
    "another codec": name("_codecs", "encode") + text("x" * 10**6) + text("punycode") + b"\x86R",
    "sizes of one list": copies_of(name("torch", "Size"), b"](" + b"K\x01" * 5_000 + b"e", 20_000),
    "a dict filled after use": b"](" + ORDERED + put(1) + b"}" + put(0) + b"\x85" + put(2) + get(0) + b"("
    + b"".join(integer(number) + b"K\x00" for number in range(5_000)) + b"u" + (get(1) + get(2) + b"R") * 100_000 + b"e",
    "a huge bytearray": name("builtins", "bytearray") + integer(2**36) + b"\x85R",
    "a huge tensor by its class": name("torch", "FloatTensor") + integer(2**36) + b"\x85R",
    "huge by way of another class": name("torch._tensor", "_rebuild_from_type_v2") + b"(" + name("builtins", "bytearray")
    + name("builtins", "bytearray") + integer(2**36) + b"\x85" + b"NtR",
    "a claimed shape": b"}" + text("a") + tensor(sizes=b"K\x00" + integer(2**40) + b"\x85K\x01\x85\x89" + ORDERED + b")R") + b"s",
    "an expanded shape": b"}" + text("a") + tensor(sizes=b"K\x00" + integer(2**40) + b"\x85K\x00\x85\x89" + ORDERED + b")R") + b"s",
    "a claimed storage": b"}" + text("a") + tensor(of=storage(integer(2**40))) + b"s",
    "a storage that is not there": b"}" + text("a") + tensor(of=storage(key="1")) + b"s",
    "a million empty tensors": empty_tensors(300_000),
    "nested tuples": b"}" + b")" + b"\x85" * 400_000 + b"Ns",
    "nested lists": b"](" * 400_000 + b"e" * 400_000,
    "nested dicts": (b"}" + text("a")) * 400_000 + b"N" + b"s" * 400_000,
    "doubled lists": doubled(200),
    "many names": listed(b"", 1) + b"".join(name("m", f"n{number}") + b")R" + b"\x85" for number in range(20_000)),
    "many names and calls": b"](" + b"".join(name("m", f"n{number}") for number in range(9_000)) + put(5)
    + (get(5) + b")R") * 100_000 + b"e",
    "blocks in names": module_of_blocks(5_000),
    "blocks in names, more": module_of_blocks(60_000),
    "a large memo": b"]" + put(2**31 - 1),
    "many empty dicts": listed(b"}", 300_000),
    "one long name": b"}" + text("x" * 10**7) + tensor() + b"s",
}  # fmt: skip

LEGACY = ("ordered dicts of one dict", "encodings of one text", "a claimed storage", "an expanded shape", "nested tuples")


def bomb(path: Path, *, of: str) -> None:
    """A zip whose record inflates."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for record, content in {"data.pkl": PROTO + b"}" + STOP, "version": b"3\n", of: bytes(2**28)}.items():
            archive.writestr(f"archive/{record}", content)


def write_all(folder: Path) -> list[str]:
    """Writes every hostile file; returns their names."""
    files: dict[str, Callable[[Path], None]] = {
        **{f"{title}.pth": lambda path, data=data: zip_of(data, path) for title, data in ZIPS.items()},
        **{f"{title}, legacy.pth": lambda path, title=title: legacy(ZIPS[title], path) for title in LEGACY},
        "script of copies.pt": lambda path: zip_of(ZIPS["ordered dicts of one dict"], path, **{"constants.pkl": b""}),
        "script of a claimed storage.pt": lambda path: zip_of(ZIPS["a claimed storage"], path, **{"constants.pkl": b""}),
        "legacy storage.pth": lambda path: legacy(b"}" + text("a") + tensor_of_legacy(2**40) + b"s", path, listed(text("0"), 1)),
        "legacy storage not listed.pth": lambda path: legacy(b"}" + text("a") + tensor_of_legacy(2**30) + b"s", path),
        "inflating pickle.pth": lambda path: bomb(path, of="data.pkl"),
        "inflating numbers.pth": lambda path: bomb(path, of="data/0"),
        "many in the header.safetensors": lambda path: safetensors_of(
            {f"{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(300_000)}, path
        ),
        "claimed in the header.safetensors": lambda path: safetensors_of(
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, path
        ),
        "overflow in the header.safetensors": lambda path: safetensors_of(
            {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, path
        ),
        "header without end.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{"),
        "nested header.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 10**6) + b'{"a":' + b"[" * (10**6 - 5)),
    }  # fmt: skip
    for file, write in files.items():
        write(folder / file)
    return list(files)


def tensor_of_legacy(count: int) -> bytes:
    of = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + integer(count) + b"NtQ"
    return tensor(of=of)


def read_all(folder: Path, output: Path) -> None:
    """In a process of its own: opens every file, and writes what each cost."""
    from mapet.checkpoints.address import load_backbone
    from mapet.errors import ModelError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for path in sorted(folder.iterdir()):
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            load_backbone(path)
            outcome = "opened"
        except ModelError as error:
            outcome = f"refused {str(error)[:160]}"
        except BaseException as error:
            outcome = f"{type(error).__name__} {str(error)[:160]}"
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        with output.open("a") as lines:
            print(f"{path.name}\t{time.process_time() - start:.2f}\t{more}\t{' '.join(outcome.split())}", file=lines)
