"""What a location on this machine or on the Hub holds, and into which splits it is sorted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.data.folder import FolderImages, holds_images, split_folders, visible_folders
from mapet.data.hub import PREFIX, is_saved, open_hub, open_saved
from mapet.data.listing import ListedImages
from mapet.data.named_sets import is_named_set, open_named
from mapet.data.parquet import ParquetImages
from mapet.data.splits import split_files
from mapet.data.webdataset import TAR_SUFFIXES, TarImages
from mapet.errors import DataError
from mapet.runtime.progress import say

if TYPE_CHECKING:
    from mapet.data.sources import ImageSource

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_location(location: str | Path) -> list[ImageSource] | None:
    """The splits at `location`: training part first, best held-out part second, or one part if it is not split.

    Returns:
        The splits; None if nothing is there.

    Raises:
        DataError: What is there cannot be used, or only some of the files of a pattern are there.
    """
    name, path = str(location), Path(location)
    if is_named_set(name):
        return [*open_named(name)]
    if name.startswith(PREFIX):
        return [*open_hub(name)]
    if path.is_dir():
        return _open_parts(path, name)
    files = [path] if path.exists() else matching_files(name)
    if not files:
        return None
    groups = split_files(files) or [files]
    return _open_groups(groups, name)


def matching_files(pattern: str) -> list[Path]:
    """The files that a pattern names: {0000..0127} and {train,val} as in a shell, then * ? [...]; in order.

    Raises:
        DataError: A file that braces name is not there.
    """
    names = expand_braces(pattern)
    files = {name: sorted(glob(name)) if has_magic(name) else [name] * Path(name).is_file() for name in names}  # noqa: PTH207
    missing = [name for name in names if not files[name]]
    if missing and len(missing) < len(names):
        raise DataError(
            f"{missing[0]} is not there ({len(missing)} of the {len(names)} files of {pattern} are missing). Fetch them, "
            "or write a range that is there."
        )
    return [Path(file) for name in names for file in files[name]]


def expand_braces(pattern: str) -> list[str]:
    """`x-{08..10}.tar` is x-08.tar, x-09.tar and x-10.tar; `{a,b}` is a and b; also within one another, and every name once."""
    inner = _BRACES.search(pattern)
    if inner is None:
        return [pattern]
    chosen = (pattern[: inner.start()] + choice + pattern[inner.end() :] for choice in _choices(inner[1]))
    return [*dict.fromkeys(name for one in chosen for name in expand_braces(one))]


def _choices(inside: str) -> list[str]:
    if ends := _RANGE.fullmatch(inside):
        return [f"{number:0{len(ends[1])}}" for number in range(int(ends[1]), int(ends[2]) + 1)]
    return inside.split(",")


def _open_groups(groups: Sequence[Sequence[Path]], location: str) -> list[ImageSource]:
    train = _open_files(groups[0], location)
    return [train, *(_open_files(files, location, train.classes) for files in groups[1:])]


def _open_files(files: Sequence[Path], location: str, classes: tuple[str, ...] | None = None) -> ImageSource:
    """Files of one kind."""
    if all(_is_tar(file) for file in files):
        return TarImages(files, location, classes)
    if all(file.suffix.lower() == ".parquet" for file in files):
        return ParquetImages(files, location)
    if len(files) == 1 and files[0].suffix.lower() == ".csv":
        return ListedImages(files[0], location, classes)
    what = "is a single file" if len(files) == 1 else f"and the other {len(files) - 1} files are not all tars or all Parquet"
    raise DataError(f"{files[0]} {what}. Give the folder that holds the images, .tar or .parquet files, or one .csv file.")


def _open_parts(path: Path, location: str) -> list[ImageSource]:
    """The splits in a folder."""
    if is_saved(path):
        return [*open_saved(path, location)]
    if groups := split_files(_packed(path)):
        return _open_groups(groups, location)
    if folders := split_folders(path):
        train = _open_whole(folders[0], location)
        return [train, *(_open_whole(folder, location, train.classes) for folder in folders[1:])]
    if (only := _only_folder(path)) is not None:
        return [_remember(only, part) for part in _open_parts(only, location)]
    return [_open_whole(path, location)]


def _open_whole(path: Path, location: str, classes: tuple[str, ...] | None = None) -> ImageSource:
    """Everything in a folder as one source."""
    if files := _packed(path):
        return _open_files(files, location, classes)
    only = _only_folder(path)
    if only is not None and only.name not in (classes or ()):
        return _remember(only, _open_whole(only, location, classes))
    if tars := _tars(path):
        say(f"{path} holds images and tars: the images are taken. Give {tars[0].name} or a pattern to take tars.")
    return FolderImages(path, location, classes)


def _remember(only: Path, source: ImageSource) -> ImageSource:
    """`source`, of the one folder that stands for the one around it; images without classes keep its name."""
    mixed = bool(FolderImages.loose_images(only)) and bool(visible_folders(only))
    if isinstance(source, FolderImages) and source.labels is None and not mixed:
        source.only_folder = source.only_folder or only.name
    return source


def _packed(path: Path) -> list[Path]:
    """The Parquet files in a folder, or else its tars; none that lie beside images, as these are backups, or what was unpacked."""
    if files := sorted(path.glob("*.parquet")):
        return files
    tars = _tars(path)
    return [] if tars and holds_images(path) else tars


def _tars(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if _is_tar(file) and not file.is_dir())


def _is_tar(file: Path) -> bool:
    return file.name.lower().endswith(TAR_SUFFIXES) and not file.name.startswith(".")


def _only_folder(path: Path) -> Path | None:
    """The single folder in `path` if there is nothing else to use: it stands for `path`, as one class would say nothing."""
    folders = visible_folders(path)
    alone = len(folders) == 1 and not FolderImages.loose_images(path) and not _packed(path)
    return folders[0] if alone else None
