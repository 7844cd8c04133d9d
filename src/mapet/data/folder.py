"""Folders of image files: flat, or one folder per class.

Class folders: every folder directly below (or `class_depth` levels below) is a class, whatever lies deeper belongs to it. Loose
images beside folders: the whole tree is an unlabelled collection, and a line states it. Hidden files and folders are ignored, links
are followed. Files that might have been meant as images are counted in a line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mapet.data.image_names import is_image_name, say_left_out, suffixes_in_words
from mapet.data.labels import NAMES, refuse_masks
from mapet.data.splits import split_named
from mapet.data.tree import Walk, entries, loose_images, read_file, visible_folders
from mapet.errors import DataError
from mapet.runtime.printable import few, on_one_line
from mapet.runtime.progress import say

_MOST_PARTS = 4


class FolderImages:
    """The image files below a folder, in sorted order.

    Args:
        root: The folder.
        location: What the user gave, for messages; the folder itself by default.
        classes: Class names to number labels by (those of the training part); by default the class folders' sorted names.
        class_depth: How many levels below `root` the class folders lie; a class at level 2 is called "animals/cat".

    Attributes:
        only_folder: The one folder that all images lay in, which was opened in place of the one around it; None without it.

    Raises:
        DataError: No images, a class folder without images, a class folder that is not among `classes`, or a folder that cannot
            be read or belongs to two classes.
    """

    label_kind = NAMES

    def __init__(
        self,
        root: Path,
        location: str | None = None,
        classes: tuple[str, ...] | None = None,
        class_depth: int | None = None,
    ) -> None:
        self._root = Path(root)
        self.location = location or str(root)
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] | None = None
        self.only_folder: str | None = None
        folders, loose = entries(self._root)
        self._files = [name for name in loose if is_image_name(name)]
        if class_depth is not None and class_depth > 1:
            folders = self._folders_at(class_depth)
        labelled = bool(folders) and not self._files
        walk = Walk()
        below = {name: [*walk.files(self._root / name, name if labelled else "")] for name in folders}
        by_folder = {name: [file for file in files if is_image_name(file)] for name, files in below.items()}
        if labelled:
            self._refuse_empty(below, by_folder)
            if class_depth is None and classes is None and split_named(self._root.name) is None:
                self._refuse_parts(by_folder)
            self._read_classes(by_folder, classes, class_depth or 1)
        else:
            self._read_unlabelled(by_folder)
        _say_lists(self._root, loose)
        say_left_out(str(self._root), [*loose, *(f"{name}/{file}" for name, files in below.items() for file in files)])

    def _folders_at(self, depth: int) -> list[str]:
        """Paths of the folders at a level, relative to the root; no images may lie above them."""
        level = [""]
        for number in range(depth):
            listings = {name: entries(self._root / name) for name in level}
            for name, (folders, files) in listings.items():
                images = [file for file in files if is_image_name(file)]
                if images or not folders:
                    problem = f"'{images[0]}' lies in it" if images else "it holds no folders"
                    raise DataError(
                        f"The class folders of {self._root} are to lie {depth} levels below it, and {self._root / name} lies "
                        f"{number} levels below it: {problem}. Give another --class-depth, or move the images."
                    )
            level = [f"{name}/{folder}".lstrip("/") for name, (folders, _) in listings.items() for folder in folders]
        return level

    def _refuse_empty(self, below: dict[str, list[str]], by_folder: dict[str, list[str]]) -> None:
        empty = [name for name, files in by_folder.items() if not files]
        if len(empty) == len(by_folder):
            raise self._no_images()
        if empty:
            instead = f" but {below[empty[0]][0]}" if below[empty[0]] else ""
            raise DataError(
                f"The class folder {self._root / empty[0]} holds no images{instead} ({len(empty)} of {len(by_folder)} class "
                f"folders hold none). Fill it or remove it; files ending in {suffixes_in_words()} count as images."
            )

    def _refuse_parts(self, by_folder: dict[str, list[str]]) -> None:
        """Refuses a few folders that all hold the same folders of images: masks, or splits that are named in another language."""
        inner = {name: {file.partition("/")[0] for file in files if "/" in file} for name, files in by_folder.items()}
        alike = {frozenset(names) for names in inner.values()}
        if 2 <= len(inner) <= _MOST_PARTS and len(alike) == 1 and len(names := min(alike)) > 1:
            refuse_masks(self._root, inner)
            raise DataError(
                f"The {len(inner)} folders of {self._root} ({few(inner)}) hold the same folders of images: {few(sorted(names))}. "
                "If they are parts of one collection, name them train/ and val/ or test/. If they are the classes, give "
                "--class-depth 1; if the folders in them are, --class-depth 2."
            )

    def _read_classes(self, by_folder: dict[str, list[str]], classes: tuple[str, ...] | None, depth: int) -> None:
        self.classes = classes or tuple(by_folder)
        numbers = {name: number for number, name in enumerate(self.classes)}
        if foreign := [name for name in by_folder if name not in numbers]:
            raise DataError(
                f"{self._root} has the class folder '{foreign[0]}', which the training images lack; they have "
                f"{len(self.classes)} classes: {few(self.classes)}. Use the same folder names in both."
            )
        self._files = [f"{name}/{file}" for name, files in by_folder.items() for file in files]
        self.labels = np.repeat([numbers[name] for name in by_folder], [len(files) for files in by_folder.values()])
        if deeper := sorted({f"{name}/{Path(file).parent}" for name, files in by_folder.items() for file in files if "/" in file}):
            say(
                f"{self._root}: {len(deeper):,} deeper folders are not used as classes ({few(deeper)}); the {len(by_folder):,} "
                f"folders above them are. --class-depth {depth + 1} takes the folders one level deeper."
                + (" Splits belong above class folders." if any(split_named(Path(name).name) for name in deeper) else "")
            )

    def _read_unlabelled(self, by_folder: dict[str, list[str]]) -> None:
        loose = len(self._files)
        self._files = sorted([*self._files, *(f"{name}/{file}" for name, files in by_folder.items() for file in files)])
        if not self._files:
            raise self._no_images()
        if len(self._files) > loose:
            say(
                f"{self._root} holds {loose} loose images beside folders of images ({few(by_folder)}): taken as one unlabelled "
                "collection. Move the loose ones away to use the folders as classes."
            )

    def _no_images(self) -> DataError:
        return DataError(f"{self._root} holds no images: nothing in it or below it ends in {suffixes_in_words()}.")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        """The content of one file."""
        return read_file(self._root / self._files[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return on_one_line(self._root / self._files[index])


def remember_only_folder(source: FolderImages, folder: Path) -> None:
    """Keeps the name of the one folder that `source` was opened from; images without classes alone have use for it."""
    mixed = bool(loose_images(folder)) and bool(visible_folders(folder))
    if source.labels is None and not mixed:
        source.only_folder = source.only_folder or folder.name


def _say_lists(root: Path, names: list[str]) -> None:
    """One line about lists that lie beside the images and may name their labels and parts."""
    if lists := [name for name in names if name.lower().endswith(".csv")]:
        say(f"{root}: the lists in it are not read ({few(lists)}). To take images and labels from one, give its path.")
