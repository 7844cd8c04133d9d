"""Images with masks, from a folder that holds both.

    ROOT/images/{training,validation}/X.jpg   ROOT/annotations/{training,validation}/X.png   ROOT/objectInfo150.txt    (ADE20K)
    ROOT/images/{train,val}/X.jpg             ROOT/annotations/{train,val}/X.png             ROOT/labels.txt
    ROOT/images/X.jpg                         ROOT/annotations/X.png                         ROOT/labels.txt

In the last one, train.txt and val.txt may list names, one a line; without them one image in five is held out, by content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mapet.data.decode import image_size
from mapet.data.folder import is_image_name, read_file, visible_folders
from mapet.data.sources import HASHING_THREADS, HELD_OUT_SHARE, SILENT_SECONDS, sample_key
from mapet.errors import DataError, UnreadableImageError
from mapet.evaluation.segmentation.masks import ADE20K_LISTING, IGNORE_ID, MASK_SUFFIXES, MaskIds, ids_of, read_ids
from mapet.runtime.progress import progress, say

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "validation", "test")
LAYOUT = (
    "Expected: images/train/X.jpg and images/val/X.jpg with annotations/train/X.png and annotations/val/X.png (ADE20K: training "
    f"and validation), or images/X.jpg with annotations/X.png, and beside them labels.txt (ADE20K: {ADE20K_LISTING})."
)
_Fact = tuple[str, str, np.ndarray, int]


class MaskedImages:
    """Images and their masks, checked; a `mapet.data.sources.ImageSource` without labels.

    Args:
        location: What the user gave, for messages.
        pairs: Image and mask.
        ids: What the masks hold.
        facts: What is known of every pair already, so that it is not read again.

    Attributes:
        keys: Sample keys, "" where an image cannot be read.
        digest: Of all images and masks, in hex.
        class_names: Of the classes that are told apart.
        class_pixels: (C,) int64, how many pixels are of each class.
        unnamed_pixels: How many have the id 255 without a name for it.

    Raises:
        DataError: A mask is unreadable, not of its image's size, or holds unknown ids.
    """

    labels: np.ndarray | None = None

    def __init__(
        self, location: str, pairs: Sequence[tuple[Path, Path]], ids: MaskIds, facts: Sequence[_Fact] | None = None
    ) -> None:
        self.location, self._pairs, self._ids = location, list(pairs), ids
        self.classes: tuple[str, ...] | None = ids.classes
        self.class_names = ids.classes
        self._facts = facts = self._check_all() if facts is None else list(facts)
        self.keys = [key for key, *_ in facts]
        self.digest = hashlib.sha256("".join(key + mask for key, mask, *_ in facts).encode()).hexdigest()
        self.class_pixels = np.stack([counts for *_, counts, _ in facts]).sum(axis=0)
        self.unnamed_pixels = sum(unnamed for *_, unnamed in facts)

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> bytes:
        """The encoded content of one image."""
        return read_file(self._pairs[index][0])

    def read_mask(self, index: int) -> np.ndarray:
        """(H, W) int16: the class of every pixel, or `IGNORED`."""
        return self._ids.read(self._pairs[index][1])

    def describe(self, index: int) -> str:
        """The path of the image."""
        return str(self._pairs[index][0])

    def only(self, indices: Sequence[int]) -> MaskedImages:
        """Some of them."""
        pairs = [self._pairs[index] for index in indices]
        return MaskedImages(self.location, pairs, self._ids, [self._facts[index] for index in indices])

    def _check_all(self) -> list[_Fact]:
        facts = []
        with progress("Checking masks", len(self), after=SILENT_SECONDS) as bar, ThreadPoolExecutor(HASHING_THREADS) as pool:
            for fact in pool.map(self._check, range(len(self))):
                facts.append(fact)
                bar.advance()
        return facts

    def _check(self, index: int) -> _Fact:
        """Sample key, digest of the mask, pixels of every class, and pixels of the id 255 where it has no name."""
        path = self._pairs[index][1]
        ids = read_ids(path)
        mask = self._ids.classes_of(ids, path)
        unnamed = 0 if IGNORE_ID in self._ids.named else int(np.count_nonzero(ids == IGNORE_ID))
        try:
            content = self.read(index)
        except UnreadableImageError:
            content = b""
        size = _size(content)
        if size is not None and size != mask.shape[::-1]:
            raise DataError(
                f"The mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels, its image {self.describe(index)} is {size[0]} x "
                f"{size[1]}. Both must be of one size; resize masks without interpolation (nearest). Both are turned as the EXIF "
                "of each says: one of them may lack it."
            )
        key = sample_key(content) if content else ""
        return key, sample_key(mask.tobytes()), np.bincount(mask[mask >= 0], minlength=len(self.class_names)), unnamed

    def describe_classes(self, numbers: Sequence[int]) -> str:
        """Names and ids of some classes, the first five."""
        listed = [f"'{self.class_names[number]}' (id {self._ids.class_ids[number]})" for number in numbers[:5]]
        return ", ".join(listed) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def open_segmentation(location: str) -> tuple[MaskedImages, MaskedImages]:
    """Images to train on, and images to be tested on; every mask is read once and checked.

    Raises:
        DataError: A folder, a class list or a mask is missing or wrong; says which.
    """
    train, test = _open(location)
    known = np.count_nonzero(train.class_pixels)
    if known < 2 or not test.class_pixels.any():
        where = (
            f"The training masks of {location} show {known} classes" if known < 2 else f"All test masks of {location} are ignored"
        )
        raise DataError(f"{where}; at least two classes to learn and one to test are needed. Check the ids in the masks.")
    _remark(train, test)
    return train, test


def _remark(train: MaskedImages, test: MaskedImages) -> None:
    """States which listed classes no pixel has, and how many pixels are ignored because of their id."""
    seen = {"training": train.class_pixels > 0, "test": test.class_pixels > 0}
    lacking = {part: [*map(int, np.flatnonzero(~found))] for part, found in seen.items()}
    both = [number for number in lacking["training"] if number in lacking["test"]]
    if both:
        say(f"No mask of {train.location} has a pixel of the class {train.describe_classes(both)}.")
    for part, numbers in lacking.items():
        if only := [number for number in numbers if number not in both]:
            say(f"No {part} mask of {train.location} has a pixel of the class {train.describe_classes(only)}.")
    unnamed = train.unnamed_pixels + test.unnamed_pixels
    if unnamed:
        share = unnamed / (unnamed + train.class_pixels.sum() + test.class_pixels.sum())
        hint = " If they are a class, give it an id from the class list." if both else ""
        say(f"The id {IGNORE_ID} is ignored: {unnamed:,} pixels, {share:.1%} of those with a class or this id.{hint}")


def _open(location: str) -> tuple[MaskedImages, MaskedImages]:
    root = _root(Path(location))
    ids = ids_of(root)
    train, test = _both_splits(root) or _listed_splits(root) or (None, None)
    if train is None or test is None:
        return _hold_out(MaskedImages(location, _pairs(root / "images", root / "annotations"), ids))
    return MaskedImages(location, train, ids), MaskedImages(location, test, ids)


def _root(path: Path) -> Path:
    """The folder that holds images/ and annotations/: `path`, or the only folder in it."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}. {LAYOUT}")
    folders = visible_folders(path)
    for root in [path, *(folders if len(folders) == 1 else [])]:
        if (root / "images").is_dir() and (root / "annotations").is_dir():
            return root
    names = [folder.name for folder in folders]
    lacking = [name for name in ("images", "annotations") if name not in names]
    found = ", ".join(names) or "no folders"
    raise DataError(f"{path} has no {' and no '.join(f'{name}/' for name in lacking)}; it holds {found}. {LAYOUT}")


def _both_splits(root: Path) -> list[list[tuple[Path, Path]]] | None:
    """The pairs of train and of val, where images/ is sorted into folders."""
    images = root / "images"
    names = [next((name for name in some if (images / name).is_dir()), None) for some in (TRAIN_NAMES, TEST_NAMES)]
    if names == [None, None]:
        return None
    if None in names:
        missing = "train (or training)" if names[0] is None else "val (or validation, or test)"
        raise DataError(f"{images} has '{names[0] or names[1]}' and lacks {missing}. {LAYOUT}")
    return [_pairs(images / str(name), root / "annotations" / str(name)) for name in names]


def _listed_splits(root: Path) -> list[list[tuple[Path, Path]]] | None:
    """The pairs that train.txt and val.txt name, with or without suffix."""
    lists = [
        next((root / f"{name}.txt" for name in some if (root / f"{name}.txt").is_file()), None)
        for some in (TRAIN_NAMES, TEST_NAMES)
    ]
    train, test = lists
    if train is None or test is None:
        return None
    known = {image.stem: (image, mask) for image, mask in _pairs(root / "images", root / "annotations")}
    splits = []
    for listing in (train, test):
        names = [Path(line.split()[0]).name for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        stems = [Path(name).stem if is_image_name(name) else name for name in names]
        if lost := [stem for stem in stems if stem not in known]:
            raise DataError(f"{listing} names '{lost[0]}', which {root / 'images'} lacks ({len(lost)} of {len(stems)} do).")
        splits.append([known[stem] for stem in stems])
    if both := {*splits[0]} & {*splits[1]}:
        raise DataError(f"{train} and {test} share {len(both)} images, such as {min(both)[0].name}. Name every image once.")
    return splits


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Every image in a folder with the mask of the same name."""
    if not masks.is_dir():
        raise DataError(f"There is no folder {masks} with the masks of {images}. {LAYOUT}")
    found = sorted(path for path in images.iterdir() if is_image_name(path.name))
    by_stem = {path.stem: path for path in sorted(masks.iterdir()) if path.suffix.lower() in MASK_SUFFIXES}
    if not found:
        raise DataError(f"{images} holds no images. {LAYOUT}")
    if lost := [image for image in found if image.stem not in by_stem]:
        raise DataError(
            f"{lost[0]} has no mask {masks / lost[0].stem}.png ({len(lost)} of {len(found)} images have none). A mask has the "
            f"name of its image and one of the suffixes {' '.join(MASK_SUFFIXES)}."
        )
    return [(image, by_stem[image.stem]) for image in found]


def _hold_out(whole: MaskedImages) -> tuple[MaskedImages, MaskedImages]:
    held_out = [bool(key) and int(key[:8], 16) < HELD_OUT_SHARE * 2**32 for key in whole.keys]
    if not any(held_out) or all(held_out):
        raise DataError(
            f"{sum(held_out)} of the {len(whole)} images of {whole.location} would be held out (one in five, by content). Add "
            "images, or sort them into images/train and images/val."
        )
    say(f"Holding out {sum(held_out):,} of {len(whole):,} images by content; images/train and images/val overrule it.")
    test = [index for index, out in enumerate(held_out) if out]
    return whole.only([index for index, out in enumerate(held_out) if not out]), whole.only(test)


def _size(content: bytes) -> tuple[int, int] | None:
    """Width and height as the image is shown; None where its header cannot be read."""
    try:
        return image_size(content)
    except UnreadableImageError:  # whoever decodes the image gives the reason
        return None
