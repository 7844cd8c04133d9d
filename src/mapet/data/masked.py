"""Images with masks, from a folder that holds both.

    ROOT/images/{training,validation}/X.jpg   ROOT/annotations/{training,validation}/X.png   ROOT/objectInfo150.txt    (ADE20K)
    ROOT/images/{train,val}/X.jpg             ROOT/annotations/{train,val}/X.png             ROOT/labels.txt
    ROOT/images/X.jpg                         ROOT/annotations/X.png                         ROOT/labels.txt

In the last one, train.txt and val.txt may list names, one a line; without them one image in five is held out, by content. The
names of splits are those of `mapet.data.splits`; `#split=test` behind ROOT takes test/ where there is val/ too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mapet.data.address import DataAddress
from mapet.data.decode import image_size, is_turned
from mapet.data.image_names import is_image_name, say_left_out
from mapet.data.mask_files import ADE20K_LISTING, IGNORE_ID, MASK_SUFFIXES, MaskIds, ids_of, read_ids
from mapet.data.source import HASHING_THREADS, SILENT_SECONDS, sample_key
from mapet.data.sources import HELD_OUT_SHARE
from mapet.data.splits import TRAIN, by_split, validation_part
from mapet.data.tree import entries, holds_images, read_file, visible_folders
from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.printable import few
from mapet.runtime.progress import progress, say, say_fact
from mapet.runtime.regular import read_text

LAYOUT = (
    "Expected: images/train/X.jpg and images/val/X.jpg with annotations/train/X.png and annotations/val/X.png (ADE20K: training "
    f"and validation), or images/X.jpg with annotations/X.png, and beside them labels.txt (ADE20K: {ADE20K_LISTING})."
)
_Fact = tuple[str, str, np.ndarray, int, bool]
_Pair = tuple[Path, Path]


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
        class_names: Names of the classes.
        class_pixels: (C,) int64, how many pixels are of each class.
        unnamed_pixels: How many have the id 255 without a name for it.
        turned_alone: How many images are turned by their EXIF, and their masks are not.

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
        self.class_pixels = np.stack([counts for *_, counts, _, _ in facts]).sum(axis=0)
        self.unnamed_pixels = sum(unnamed for *_, unnamed, _ in facts)
        self.turned_alone = sum(turned for *_, turned in facts)

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
        """Sample key, digest of the mask, pixels of every class, unnamed pixels, whether the image is turned alone."""
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
        counts = np.bincount(mask[mask >= 0], minlength=len(self.class_names))
        turned_alone = is_turned(content) and not is_turned(read_file(path))
        return key, sample_key(mask.tobytes()), counts, unnamed, turned_alone

    def describe_classes(self, numbers: Sequence[int]) -> str:
        """Names and ids of some classes, the first five."""
        descriptions = [f"'{self.class_names[number]}' (id {self._ids.class_ids[number]})" for number in numbers[:5]]
        return ", ".join(descriptions) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def open_segmentation(location: str) -> tuple[MaskedImages, MaskedImages]:
    """Images to train on, and images to be tested on; every mask is read once and checked.

    Raises:
        DataError: A folder, a class list or a mask is missing or wrong; the message names it.
    """
    train, test = _open(location)
    num_classes = np.count_nonzero(train.class_pixels)
    if num_classes < 2 or not test.class_pixels.any():
        where = (
            f"The training masks of {location} show {num_classes} classes"
            if num_classes < 2
            else f"All test masks of {location} are ignored"
        )
        raise DataError(f"{where}; at least two classes to learn and one to test are needed. Check the ids in the masks.")
    _remark(train, test)
    return train, test


def _remark(train: MaskedImages, test: MaskedImages) -> None:
    """States which listed classes no pixel has, how many pixels are ignored because of their id, and images turned alone."""
    seen = {"training": train.class_pixels > 0, "test": test.class_pixels > 0}
    lacking = {part: [*map(int, np.flatnonzero(~has_pixels))] for part, has_pixels in seen.items()}
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
    if turned := train.turned_alone + test.turned_alone:
        say(
            f"{turned:,} images are turned as their EXIF says, and their masks have no such entry and stay as they are. If the "
            "masks were drawn on images that were not turned, give the masks the same entry."
        )


def _open(location: str) -> tuple[MaskedImages, MaskedImages]:
    address = DataAddress.parse(location)
    if address.class_depth is not None:
        raise DataError("--class-depth is about class folders, and images with masks have none. Leave it out.")
    root = _root(Path(address.place))
    ids = ids_of(root)
    splits = _split_folders(root) or _listed_splits(root)
    if not splits and address.split is not None:
        raise DataError(f"{root} has no splits of its own, so that there is no '{address.split}'. Leave out --split. {LAYOUT}")
    if not splits:
        return _hold_out(MaskedImages(location, _pairs(root / "images", root / "annotations"), ids))
    train, test = next(iter(splits.values())), validation_part(splits, address.split, str(root))
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
    content = ", ".join(names) or "no folders"
    raise DataError(f"{path} has no {' and no '.join(f'{name}/' for name in lacking)}; it holds {content}. {LAYOUT}")


def _split_folders(root: Path) -> dict[str, list[_Pair]]:
    """The pairs of every split, the training part first, where images/ is sorted into folders."""
    images, masks = (by_split(entries(root / name)[0], str(root / name)) for name in ("images", "annotations"))
    if not images:
        return {}
    _say_folders_left_out(root / "images", images.values())
    if TRAIN not in images or len(images) < 2:
        missing = "val (or validation, or test)" if TRAIN in images else "train (or training)"
        raise DataError(f"{root / 'images'} has '{next(iter(images.values()))}' and lacks {missing}. {LAYOUT}")
    return {name: _pairs(root / "images" / name, root / "annotations" / masks.get(split, name)) for split, name in images.items()}


def _listed_splits(root: Path) -> dict[str, list[_Pair]]:
    """The pairs that train.txt and val.txt name, with or without suffix."""
    stems = [name[: -len(".txt")] for name in entries(root)[1] if name.endswith(".txt")]
    lists = by_split(stems, str(root))
    if TRAIN not in lists or len(lists) < 2:
        return {}
    pair_of_stem = {image.stem: (image, mask) for image, mask in _pairs(root / "images", root / "annotations")}
    splits: dict[str, list[_Pair]] = {}
    for name in lists.values():
        listing = root / f"{name}.txt"
        file_names = [Path(line.split()[0]).name for line in _lines(listing) if line.strip()]
        stems = [Path(file).stem if is_image_name(file) else file for file in file_names]
        if lost := [stem for stem in stems if stem not in pair_of_stem]:
            raise DataError(f"{listing} names '{lost[0]}', which {root / 'images'} lacks ({len(lost)} of {len(stems)} do).")
        splits[name] = [pair_of_stem[stem] for stem in stems]
        for other, pairs in splits.items():
            if other != name and (both := {*pairs} & {*splits[name]}):
                raise DataError(
                    f"{root / other}.txt and {listing} share {len(both)} images, such as {min(both)[0].name}. Name every image "
                    "once."
                )
    return splits


def _lines(listing: Path) -> list[str]:
    try:
        return read_text(listing, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listing} cannot be read as text in UTF-8: {getattr(error, 'strerror', None) or error}.") from None


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Every image in a folder with the mask of the same name."""
    if not masks.is_dir():
        raise DataError(f"There is no folder {masks} with the masks of {images}. {LAYOUT}")
    names = entries(images)[1]
    image_files = [images / name for name in names if is_image_name(name)]
    by_stem = _by_stem([masks / name for name in entries(masks)[1] if name.lower().endswith(MASK_SUFFIXES)])
    _by_stem(image_files)
    say_left_out(str(images), names)
    _say_folders_left_out(images)
    if not image_files:
        raise DataError(f"{images} holds no images. {LAYOUT}")
    if lost := [image for image in image_files if image.stem not in by_stem]:
        raise DataError(
            f"{lost[0]} has no mask {masks / lost[0].stem}.png ({len(lost)} of {len(image_files)} images have none). A mask has "
            f"the name of its image and one of the suffixes {' '.join(MASK_SUFFIXES)}."
        )
    return [(image, by_stem[image.stem]) for image in image_files]


def _say_folders_left_out(root: Path, used: Collection[str] = ()) -> None:
    """One line about the folders in `root` that hold images and are not read."""
    folders = [name for name in entries(root)[0] if name not in used and holds_images(root / name)]
    if folders:
        say(f"{root}: left out are the images in {few(folders)}. Move them to where the others lie. {LAYOUT}")


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without suffix; refuses two of one name, as masks are found by name."""
    file_of_stem: dict[str, Path] = {}
    for file in files:
        if (other := file_of_stem.setdefault(file.stem, file)) is not file:
            raise DataError(
                f"{other} and {file} have one name but for the suffix, by which images and masks are paired. Rename one."
            )
    return file_of_stem


def _hold_out(whole: MaskedImages) -> tuple[MaskedImages, MaskedImages]:
    held_out = [bool(key) and int(key[:8], 16) < HELD_OUT_SHARE * 2**32 for key in whole.keys]
    if not any(held_out) or all(held_out):
        raise DataError(
            f"{sum(held_out)} of the {len(whole)} images of {whole.location} would be held out (one in five, by content). Add "
            "images, or sort them into images/train and images/val."
        )
    say_fact(f"Holding out {sum(held_out):,} of {len(whole):,} images by content; images/train and images/val overrule it.")
    test = [index for index, out in enumerate(held_out) if out]
    return whole.only([index for index, out in enumerate(held_out) if not out]), whole.only(test)


def _size(content: bytes) -> tuple[int, int] | None:
    """Width and height as the image is shown; None where its header cannot be read."""
    try:
        return image_size(content)
    except UnreadableImageError:  # whoever decodes the image gives the reason
        return None
