"""What a location on this machine or on the Hub holds, and into which splits it is sorted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from mapet.data.address import DataAddress
from mapet.data.folder import FolderImages, remember_only_folder
from mapet.data.hub import PREFIX, is_saved, open_hub, open_saved
from mapet.data.image_names import is_image_name
from mapet.data.labels import check_pairable
from mapet.data.listing import ListedImages
from mapet.data.named_sets import is_named_set, open_named
from mapet.data.parquet import ParquetImages
from mapet.data.source import ImageSource
from mapet.data.splits import HELD_OUT, TRAIN, by_split, names_in_words, split_files, split_named, split_rows, word_groups
from mapet.data.tree import entries, holds_images, loose_images, visible_folders
from mapet.data.webdataset import TAR_SUFFIXES, TarImages
from mapet.errors import DataError
from mapet.runtime.progress import say

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,15})\.\.(\d{1,15})")
MOST_FILES = 1_000_000
# With more folders, they are taken for class folders without a glance at what they hold.
_MOST_FOLDERS = 20
# Words of folders beside splits whose images have no labels.
_WITHOUT_LABELS = {"pred", "predict", "prediction", "predictions", "unlabelled", "unlabeled", "unsupervised"}
# The parts of a collection by their names, the training part first; one part called "" where it is not split.
Parts = dict[str, ImageSource]


@dataclass(frozen=True)
class FileFormat:
    """Files that hold, or name, many images.

    Args:
        suffixes: Of their names, in any case.
        opener: From files, the location that the user gave, and the class names of the training part, to their images.
        in_folders: Whether a folder that holds such files stands for them.
        several: Whether several of them are one collection.
    """

    suffixes: tuple[str, ...]
    opener: Callable[[Sequence[Path], str, tuple[str, ...] | None], ImageSource]
    in_folders: bool = True
    several: bool = True

    def fits(self, files: Sequence[Path]) -> bool:
        """Whether all files are of this format, and no more than it takes."""
        return (self.several or len(files) == 1) and all(file.name.lower().endswith(self.suffixes) for file in files)

    def files_in(self, folder: Path) -> list[Path]:
        """Those directly in a folder, in order."""
        return [path for name in entries(folder)[1] if self.fits([path := folder / name])]


PARQUET, TAR, CSV = "Parquet", "tar", "CSV"
FORMATS: dict[str, FileFormat] = {
    PARQUET: FileFormat((".parquet",), ParquetImages),
    TAR: FileFormat(TAR_SUFFIXES, TarImages),
    CSV: FileFormat((".csv",), lambda files, *rest: ListedImages(files[0], *rest), in_folders=False, several=False),
}


def open_location(location: str | Path) -> Parts | None:
    """The splits at `location`.

    Returns:
        The splits by name: training part first, best held-out part second; one part if it is not split; None if nothing is there.

    Raises:
        DataError: What is there cannot be used, or only some of the files of a pattern are there.
    """
    address = DataAddress.parse(location)
    name, path = address.place, Path(address.place)
    if address.class_depth is not None and not path.is_dir():
        raise DataError(f"--class-depth is about folders of images, and {name} is no folder. Leave it out.")
    if is_named_set(name):
        return dict(zip((TRAIN, "test"), open_named(name), strict=True))
    if name.startswith(PREFIX):
        return _only_by_column(dict[str, ImageSource](open_hub(name)))
    if path.is_dir():
        return _open_parts(path, address)
    files = [path] if path.exists() else matching_files(name)
    if not files:
        return None
    return _open_groups(groups, address) if (groups := split_files(files)) else _by_column(_open_files(files, address))


def is_location(place: str) -> bool:
    """Whether a path or pattern has anything at it."""
    return Path(place).exists() or bool(matching_files(place))


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


def expand_braces(pattern: str, most: int = MOST_FILES) -> list[str]:
    """`x-{08..10}.tar` is x-08.tar, x-09.tar and x-10.tar; `{a,b}` is a and b; also within one another, and every name once.

    Raises:
        DataError: These are more than `most` names.
    """
    names = [pattern]
    while any(map(_BRACES.search, names)):
        expanded: dict[str, None] = {}
        for name in names:
            inner = _BRACES.search(name)
            choices = [""] if inner is None else _choices(inner[1])
            if len(expanded) + len(choices) > most:
                raise DataError(f"{pattern:.200} stands for more than {most:,} files. Give the folder that holds them.")
            for choice in choices:
                expanded[name if inner is None else name[: inner.start()] + choice + name[inner.end() :]] = None
        names = [*expanded]
    return names


def _choices(inside: str) -> Sequence[str]:
    ends = _RANGE.fullmatch(inside)
    if ends is None:
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if last - first >= MOST_FILES:
        return [inside] * (MOST_FILES + 1)
    return [f"{number:0{len(ends[1])}}" for number in range(first, last + 1)]


def _open_groups(groups: dict[str, list[Path]], address: DataAddress) -> Parts:
    """Files that are named after splits, by split."""
    parts: Parts = {}
    for split, files in groups.items():
        parts[split] = _fitting(parts, lambda classes, files=files: _open_files(files, address, classes))
        _by_column(parts[split], split)
    return parts


def _fitting(parts: Parts, open_part: Any) -> ImageSource:
    """The next part, whose labels are numbered by the names of the first."""
    train = next(iter(parts.values()), None)
    part = open_part(train.classes if train else None)
    check_pairable(train or part, part)
    return part


def _by_column(source: ImageSource, split: str = "") -> Parts:
    """The parts that a column such as `split` makes of a source, which may be a part of its own already."""
    rows = split_rows(getattr(source, "split_columns", {}), source.describe, source.location)
    if len(rows) < 2:
        return {split: source}
    if split:
        raise DataError(
            f"{source.describe(0)} belongs to '{split}' by the name of its file, and its column names the splits "
            f"{' and '.join(rows)}. Remove the column, or give one file."
        )
    return {name: source.only(numbers) for name, numbers in rows.items()}  # pyright: ignore[reportAttributeAccessIssue]


def _only_by_column(parts: Parts) -> Parts:
    """`parts`; a single one is sorted by its column."""
    if len(parts) > 1:
        return parts
    sorted_parts = _by_column(next(iter(parts.values())))
    return sorted_parts if len(sorted_parts) > 1 else parts


def _open_files(files: Sequence[Path], address: DataAddress, classes: tuple[str, ...] | None = None) -> ImageSource:
    """Files of one kind."""
    for data_format in FORMATS.values():
        if data_format.fits(files):
            return data_format.opener(files, str(address), classes)
    what = "is a single file" if len(files) == 1 else f"and the other {len(files) - 1} files are not all tars or all Parquet"
    raise DataError(f"{files[0]} {what}. Give the folder that holds the images, .tar or .parquet files, or one .csv file.")


def _open_parts(path: Path, address: DataAddress) -> Parts:
    """The splits in a folder."""
    if is_saved(path):
        return _only_by_column(dict[str, ImageSource](open_saved(path, str(address))))
    packed = _packed(path)
    if groups := split_files(packed):
        _note_images_beside(path)
        return _open_groups(groups, address)
    if folders := _split_folders(path, bool(packed) or address.class_depth is not None) or _worded_folders(path, address):
        parts: Parts = {}
        for folder in folders:
            parts[folder.name] = _fitting(parts, lambda classes, folder=folder: _open_whole(folder, address, classes))
        return parts
    if packed:
        _note_images_beside(path)
        return _by_column(_open_files(packed, address))
    if (only := _only_folder(path, address.class_depth) or _folder_of_packed(path)) is not None:
        return {name: _remember(only, part) for name, part in _open_parts(only, address).items()}
    return {"": _open_whole(path, address)}


def _open_whole(path: Path, address: DataAddress, classes: tuple[str, ...] | None = None) -> ImageSource:
    """Everything in a folder as one source."""
    if files := _packed(path):
        _note_images_beside(path)
        return _open_files(files, address, classes)
    only = _only_folder(path, address.class_depth)
    if only is not None and only.name not in (classes or ()):
        return _remember(only, _open_whole(only, address, classes))
    if tars := FORMATS[TAR].files_in(path):
        say(f"{path} holds images and tars: the images are taken. Give {tars[0].name} or a pattern to take tars.")
    return FolderImages(path, str(address), classes, address.class_depth)


def _split_folders(path: Path, classes_allowed: bool) -> list[Path]:
    """The folders in `path` that are splits, training part first; empty where its folders are classes, or there is only one.

    A folder called train beside cat and plane is a class, unless it holds folders of images, or a held-out part lies beside it.

    Args:
        path: The folder.
        classes_allowed: Whether folders are no splits in doubt; else doubts are errors.

    Raises:
        DataError: It is not clear what they are.
    """
    names, files = entries(path)
    splits = by_split(names, str(path))
    if not splits or len(names) == 1:
        return []
    others = [name for name in names if name not in splits.values() and _holds_anything(path / name)]
    if (TRAIN in splits and len(splits) > 1) or ([*splits] == [TRAIN] and not others):
        if others:
            say(f"{path}: {', '.join(splits.values())} are taken as splits; left out: {', '.join(others)}.")
        return [path / name for name in splits.values()]
    if classes_allowed or any(is_image_name(name) for name in files):
        return []
    folders = " and ".join(f"{name}/" for name in splits.values())
    if not others:
        alone = path / next(iter(splits.values()))
        raise DataError(f"{path} holds {folders} and no training part. Give {alone} to use that part alone, or add train/.")
    if any(_holds_folders(path / name) for name in splits.values()):
        raise DataError(
            f"{path} holds {folders} with folders of images in it, as a split has, beside {', '.join(others[:3])}. Give {folders} "
            "alone, name what belongs to it train/ or val/, or give --class-depth 1 if all of them are classes."
        )
    say(f"{path}: {folders} counts as a class, like {', '.join(others[:3])}.")
    return []


def _worded_folders(path: Path, address: DataAddress) -> list[Path]:
    """The folders in `path` that are named alike but for the word of a split, training part first: seg_train, seg_test.

    Folders of other names beside them are left out where they share the other words (seg_pred); else all are classes.

    Raises:
        DataError: It is not clear whether they are splits or classes.
    """
    names, files = entries(path)
    groups = word_groups(names)
    if address.class_depth == 1 or sum(len(group) for _, group in groups) < 2 or any(is_image_name(name) for name in files):
        return []
    split_groups = [(words, group) for words, group in groups if len(group) > 1]
    words, group = split_groups[0] if split_groups else ((), {})
    splits = {split: folders[0] for split, folders in group.items()}
    others = [name for name in names if name not in splits.values() and _holds_anything(path / name)]
    unrelated = [name for name in others if not _belongs(name, words)]
    if TRAIN in splits and len(split_groups) == 1 and not unrelated and all(len(folders) == 1 for folders in group.values()):
        split_note = ", ".join(f"{name}/ is taken as '{split}'" for split, name in splits.items())
        left_out = f"; left out: {', '.join(others)}" if others else ""
        say(f"{path}: {split_note}{left_out}. --class-depth 1 takes all of them as classes.")
        return [path / name for name in splits.values()]
    split_folders = [name for _, group in groups for folders in group.values() for name in folders]
    alike = len(split_groups) > 1 or (split_groups and not unrelated)
    if alike or ((split_groups or len(split_folders) == len(names)) and all(_holds_folders(path / name) for name in split_folders)):
        raise DataError(
            f"{path} holds {', '.join(f'{name}/' for name in sorted(split_folders)[:4])}, which hold the names of splits, and it "
            f"is not clear whether they are splits or classes. Rename those that are splits ({names_in_words()}), or give "
            "--class-depth 1 if all are classes."
        )
    return []


def _belongs(name: str, words: tuple[str, ...]) -> bool:
    """Whether a folder is something else of the same collection as its splits: seg_pred beside seg_train, predict."""
    name_words = {*re.findall("[a-z]+", name.lower())}
    return bool(name_words & _WITHOUT_LABELS) or (bool(words) and name_words >= {*words})


def _holds_folders(folder: Path) -> bool:
    """Whether a folder holds folders of images and no images of its own."""
    return not loose_images(folder) and holds_images(folder)


def _holds_anything(folder: Path) -> bool:
    """Whether a folder is worth a word; one that cannot be read is."""
    try:
        return holds_images(folder) or bool(_packed(folder))
    except DataError:
        return True


def _folder_of_packed(path: Path) -> Path | None:
    """The one folder in `path` that holds Parquet files or tars, as data/ does beside assets/.

    Raises:
        DataError: Several do, or images lie in the other folders.
    """
    folders = visible_folders(path)
    if loose_images(path) or len(folders) > _MOST_FOLDERS:
        return None
    packed = [folder for folder in folders if _holds_packed(folder)]
    images = [folder.name for folder in folders if folder not in packed and holds_images(folder)]
    if len(packed) > 1 or (packed and len(images) > 1):
        others = [folder.name for folder in packed[1:]] or images
        raise DataError(
            f"{path} holds Parquet files or tars in {packed[0].name}/, and more in {', '.join(f'{name}/' for name in others[:3])}. "
            f"Give one of them, such as {packed[0]}."
        )
    if packed and images:
        say(f"{path}: {packed[0].name}/ holds Parquet files or tars and is taken; left out: {images[0]}/ with images.")
    return packed[0] if packed else None


def _holds_packed(folder: Path) -> bool:
    """Whether a folder, or a split in it, holds Parquet files, tars or what `save_to_disk` wrote."""
    splits = [inner for inner in visible_folders(folder) if split_named(inner.name)]
    return is_saved(folder) or bool(_packed(folder)) or any(_packed(inner) for inner in splits)


def _remember(only: Path, source: ImageSource) -> ImageSource:
    """`source`, of the one folder that stands for the one around it; images without classes keep its name if it is no split's."""
    if isinstance(source, FolderImages) and split_named(only.name) is None:
        remember_only_folder(source, only)
    return source


def _packed(path: Path) -> list[Path]:
    """The Parquet files in a folder, or else its tars; none that lie beside images, as these are backups, or what was unpacked."""
    for name, data_format in FORMATS.items():
        if data_format.in_folders and (files := data_format.files_in(path)):
            return [] if name == TAR and holds_images(path) else files
    return []


def _note_images_beside(path: Path) -> None:
    """States that image files beside Parquet files are left out; tars beside images are no `_packed` files."""
    if images := loose_images(path):
        say(
            f"{path} holds Parquet files and {len(images):,} image files: the Parquet files are taken, and the image files only "
            "where a row names them. Move the Parquet files elsewhere to take the image files."
        )


def _only_folder(path: Path, class_depth: int | None = None) -> Path | None:
    """The single folder in `path` if there is nothing else to use: it replaces `path`, because a single class has no information.

    Where the user gives the depth of class folders, only a folder with splits in it does.
    """
    folders = visible_folders(path)
    if len(folders) != 1 or loose_images(path) or _packed(path):
        return None
    (only,) = folders
    if (split := split_named(only.name)) in HELD_OUT:
        say(f"{path} holds {only.name}/ and no other part: taken as the whole collection.")
    splits = by_split(entries(only)[0], str(only))
    return only if class_depth is None or split is not None or len(splits) > 1 else None
