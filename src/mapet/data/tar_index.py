"""Where the images in tar files lie, found by going through their headers once.

The files of a sample lie side by side and share their name up to the first dot: `x.jpg` with `x.cls` (its class as text) or
`x.json` (with "label": a number or a name). Where a sample has a plain `x.jpg`, `x.mask.png` is company, not another image; where
it has none, every image is a sample, and `x.0001.cls` belongs to `x.0001.jpg`.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from itertools import groupby
from pathlib import Path

import numpy as np

from mapet.data.image_names import is_hidden, is_image_name, is_left_out
from mapet.errors import DataError
from mapet.runtime.progress import ProgressBar, progress
from mapet.runtime.regular import open_regular

SILENT_SECONDS = 2.0
_UNPACKERS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_MIB, _MIB_SHOWN = 2**20, 16
_EXAMPLES = 3
_MOST_LABEL_BYTES = 64 * _MIB


class TarIndex:
    """What is known of every image, in arrays, so that ImageNet's 1.28 million take 0.1 GB.

    Attributes:
        tars: (n,) which of the tars.
        offsets: (n,) where in it the content begins, in bytes.
        sizes: (n,) bytes of content.
        labels: n class numbers or names as text, "" where there is none.
        stamps: Size and times of every tar when it was indexed.
        passed_over: How many files are neither used nor of a kind that usually lies beside images.
        examples: Names of some of them.
    """

    def __init__(self) -> None:
        self.tars, self.offsets, self.sizes = array("i"), array("q"), array("q")
        self.labels: list[str] = []
        self.stamps: list[tuple[int, ...]] = []
        self.passed_over, self.examples = 0, list[str]()
        self._names, self._name_ends = bytearray(), array("q")
        self._interned_labels: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, index: int) -> str:
        """The member's name."""
        start = self._name_ends[index - 1] if index else 0
        return self._names[start : self._name_ends[index]].decode("utf-8", "surrogateescape")

    def add(self, image: tarfile.TarInfo, label: str) -> None:
        """Appends an image of the tar that was stamped last."""
        self.tars.append(len(self.stamps) - 1)
        self.offsets.append(image.offset_data)
        self.sizes.append(image.size)
        self.labels.append(self._interned_labels.setdefault(label, label))
        self._names += image.name.encode("utf-8", "surrogateescape")
        self._name_ends.append(len(self._names))

    def pass_over(self, names: Sequence[str]) -> None:
        """Counts files that are not used."""
        self.passed_over += len(names)
        self.examples += names[: _EXAMPLES - len(self.examples)]


def index_tars(files: Sequence[Path]) -> TarIndex:
    """Goes through all headers of `files`.

    Raises:
        DataError: A tar is compressed, damaged or incomplete, or its members are not what WebDataset makes of samples.
    """
    index = TarIndex()
    with progress("Indexing tar files (MiB)", sum(map(_mebibytes, files)), after=SILENT_SECONDS) as bar:
        for path in files:
            try:
                with open_regular(path) as file:
                    _refuse_compressed(file, path)
                    index.stamps.append(stamp(file))
                    first = len(index)
                    for image, label in _samples(file, path, index, bar):
                        index.add(image, label)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
            _refuse_twins(index, first, path)
    return index


def _mebibytes(path: Path) -> int:
    return path.stat().st_size // _MIB if path.exists() else 0


def stamp(file: FileIO) -> tuple[int, ...]:
    """What changes when a tar is written again: inode, size, and times, of which programs cannot set the last."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _refuse_compressed(file: FileIO, path: Path) -> None:
    start = file.read(8)
    file.seek(0)
    if program := next((program for magic, program in _UNPACKERS.items() if start.startswith(magic)), None):
        raise DataError(
            f"{path} is compressed. Images are read from the middle of a tar, which only an uncompressed one allows (JPEG gains "
            f"nothing anyway). Unpack it once, for example with `{program}`, and give the .tar."
        )


def _samples(file: FileIO, path: Path, index: TarIndex, bar: ProgressBar) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """The images in one tar, each with its label as text."""
    for key, group in groupby(_members(file, path, bar), lambda member: _key_and_extension(member.name)[0]):
        members: dict[str, tarfile.TarInfo] = {}
        for member in group:
            if member.name in members:
                raise _twice(path, key, member.name, member.name)
            members[member.name] = member
        images = [name for name in members if is_image_name(name)]
        plain = [name for name in images if "." not in _key_and_extension(name)[1]]
        if len(plain) > 1:
            raise DataError(
                f"{path} holds two images for the sample '{key}': {plain[0]} and {plain[1]}. Pack one of them only, or call the "
                f"other {key}.mask.png or the like, which is passed over."
            )
        used = plain or images
        index.pass_over([*(name for name in images if name not in used), *filter(is_left_out, members)])
        labels = _label_members(members.values())
        for name in used:
            stem = name.rpartition(".")[0]
            label = labels.pop(stem, None) or labels.get(key)
            yield _stored_plainly(members[name], path), _label(file, path, label)
        lost = {stem: member for stem, member in labels.items() if not images or (stem != key and _is_number(member))}
        for stem, member in lost.items():
            _refuse_lost_label(file, path, stem, member)


def _key_and_extension(name: str) -> tuple[str, str]:
    """`a/b.mask.png` is `a/b` and `mask.png`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _label_members(members: Iterable[tarfile.TarInfo]) -> dict[str, tarfile.TarInfo]:
    """What may hold labels, by its name without suffix: .json, and before it .cls, in any case."""
    by_stem = {}
    for suffix in (".json", ".cls"):
        by_stem |= {member.name[: -len(suffix)]: member for member in members if member.name.lower().endswith(suffix)}
    return by_stem


def _is_number(member: tarfile.TarInfo) -> bool:
    return member.name.lower().endswith(".cls")


def _label(file: FileIO, path: Path, member: tarfile.TarInfo | None) -> str:
    """The label of a sample in a .cls file, or in "label" of a .json file."""
    if member is None:
        return ""
    if member.size > _MOST_LABEL_BYTES:
        raise DataError(f"{path}: {member.name} has {member.size:,} bytes, which is no label. Pack it again, or without it.")
    try:
        text = os.pread(file.fileno(), member.size, _stored_plainly(member, path).offset_data).decode("utf-8-sig").strip()
        value = text if _is_number(member) else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the label in {member.name} cannot be read: {error}. Pack it again, or without it.") from error
    if isinstance(value, dict):
        value = value.get("label")
    elif not _is_number(member):
        value = None
    if isinstance(value, (bool, float, list, dict)):
        raise DataError(f"{path}: {member.name} has the label {value!r}; a class number or a class name is allowed.")
    return "" if value is None else str(value)


def _refuse_lost_label(file: FileIO, path: Path, stem: str, member: tarfile.TarInfo) -> None:
    """A label without an image belongs to one that lies elsewhere; other JSON files may lie about."""
    try:
        label = _label(file, path, member)
    except DataError:
        return
    if label:
        raise DataError(
            f"{path} holds a label for '{stem}' without an image beside it. The files of a sample must follow one another: pack "
            "them with `tar --sort=name`."
        )


def _stored_plainly(member: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
    """`member`, if its content lies in the tar in one piece."""
    if member.issym() or member.islnk():
        raise DataError(
            f"{path} holds {member.name} as a link to {member.linkname}, not as a file. Pack it with `tar --dereference "
            "--hard-dereference`."
        )
    if member.issparse():
        raise DataError(f"{path} holds {member.name} as a sparse file. Pack it without --sparse.")
    return member


def _members(file: FileIO, path: Path, bar: ProgressBar) -> Iterator[tarfile.TarInfo]:
    """The files and links in a tar, without hidden ones.

    `tarfile` takes a damaged header, and the end of the file wherever it comes, for the end of the tar, which would lose images
    without a word; and negative sizes send it in circles.
    """
    mib_done, end = 0, 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # else it keeps them all
                if tar.offset <= end or member.size < 0:
                    raise tarfile.ReadError(f"the header before byte {end} gives a negative size")
                end = tar.offset
                if end >= (mib_done + _MIB_SHOWN) * _MIB:
                    bar.advance(end // _MIB - mib_done)
                    mib_done = end // _MIB
                member.name = posixpath.normpath(member.name)  # tars of a whole folder begin every name with ./
                if (member.isreg() or member.issym() or member.islnk()) and not is_hidden(member.name):
                    yield member
            _check_end(file, tar.offset)
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path} is damaged, cut short, or no tar: {error}. Fetch or pack it again.") from error
    bar.advance(os.fstat(file.fileno()).st_size // _MIB - mib_done)


def _check_end(file: FileIO, offset: int) -> None:
    """Nothing but zeros, and some of them, must follow the last member."""
    file.seek(offset)
    first = file.read(tarfile.BLOCKSIZE)
    if not first:
        raise tarfile.ReadError("the mark at its end is missing")
    if any(first):
        raise tarfile.ReadError(f"the header at byte {offset} cannot be read")
    while chunk := file.read(2**16):
        if any(chunk):
            raise tarfile.ReadError("something follows the mark at its end; if tars were joined, use `tar --concatenate`")


def _refuse_twins(index: TarIndex, first: int, path: Path) -> None:
    """No sample may occur twice among the images from number `first` on: appended again, or its files not side by side."""

    def identity(number: int) -> str:
        name = index.name(number)
        key, extension = _key_and_extension(name)
        return name if "." in extension else key

    hashes = np.fromiter((hash(identity(number)) for number in range(first, len(index))), np.int64)
    order = np.argsort(hashes, kind="stable")
    for twin in np.flatnonzero(np.diff(hashes[order]) == 0):
        one, other = (first + int(number) for number in order[twin : twin + 2])
        if identity(one) == identity(other):
            raise _twice(path, identity(one), index.name(one), index.name(other))


def _twice(path: Path, identity: str, one: str, other: str) -> DataError:
    return DataError(
        f"{path} holds the sample '{identity}' twice: as {one} and further on as {other}. Pack it again, with `tar --sort=name` so "
        "that the files of a sample follow one another."
    )
