"""Masks are read by the path of images (R16), and what is ignored or never seen is stated (R15)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.data.decode import decode_image
from mapet.data.mask_files import IGNORED, ids_of, read_ids
from mapet.data.masked import open_segmentation
from mapet.errors import DataError
from tests.data.raw_images import tiff

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def write(path: Path, image: Image.Image, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_r16_masks_are_turned_like_images(tmp_path: Path, orientation: int, suffix: str) -> None:
    """R16: a mask is turned by its EXIF as an image with the same pixels is."""
    path = tmp_path / f"mask.{suffix}"
    write(path, Image.fromarray(IDS), orientation)
    np.testing.assert_array_equal(read_ids(path), np.asarray(decode_image(path.read_bytes()))[..., 0])


def pairs(root: Path, image_orientation: int, mask_orientation: int, ids: np.ndarray = IDS % 2, suffix: str = "png") -> str:
    for part, count in (("train", 3), ("val", 1)):
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 255, (*ids.shape, 3), dtype=np.uint8)
            write(root / "images" / part / f"{number}.{suffix}", Image.fromarray(pixels), image_orientation)
            write(root / "annotations" / part / f"{number}.png", Image.fromarray(ids), mask_orientation)
    (root / "labels.txt").write_text("a\nb\n")
    return str(root)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_r16_image_and_mask_that_are_both_turned_fit(tmp_path: Path, suffix: str) -> None:
    """R16: image and mask stored turned, both with EXIF."""
    train, _ = open_segmentation(pairs(tmp_path, 6, 6, suffix=suffix))
    assert train.read_mask(0).shape == (4, 3) == decode_image(train.read(0)).size[::-1]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientations", [(6, 1), (1, 6)])
def test_r16_sizes_that_differ_are_refused(tmp_path: Path, orientations: tuple[int, int], suffix: str) -> None:
    """R16: only one of the two is turned."""
    with pytest.raises(DataError, match=r"is \d x \d pixels, its image .* Both are turned as the EXIF of each says"):
        open_segmentation(pairs(tmp_path, *orientations, suffix=suffix))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_r16_an_image_that_is_turned_alone_is_stated(tmp_path: Path, orientation: int, capsys) -> None:
    """R16: where the sizes fit either way, only the user knows on which of the two the mask was drawn."""
    open_segmentation(pairs(tmp_path / "both", orientation, orientation))
    assert "turned" not in capsys.readouterr().err
    open_segmentation(pairs(tmp_path / "one", orientation, 1))
    assert "4 images are turned as their EXIF says, and their masks have no such entry" in capsys.readouterr().err


def test_f8_folders_of_images_that_are_not_read_are_stated(tmp_path: Path, capsys) -> None:
    """F8: within a split, and beside the splits."""
    root = Path(pairs(tmp_path, 1, 1))
    for place in ("train/city", "extra"):
        write(root / "images" / place / "9.png", Image.fromarray(IDS))
    (root / "images/train/empty").mkdir()
    train, _ = open_segmentation(str(root))
    assert len(train) == 3
    said = capsys.readouterr().err
    assert "images/train: left out are the images in city." in said
    assert "images: left out are the images in extra." in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(IDS, 8, 0), "stores a negative"),
        (tiff(IDS, 16, 0), "stores a negative"),
        ("JPEG", "cannot be read: not an image in a known format.*known: PNG, BMP, GIF, TIFF"),
        ("jpeg in tiff", "compressed as a photograph"),
        ("PPM", "cannot be read: not an image in a known format"),
        ("EPS", "cannot be read: not an image in a known format"),
    ],
    ids=["negative-8", "negative-16", "jpeg", "jpeg-in-tiff", "pgm", "postscript"],
)
def test_masks_whose_numbers_may_be_others_are_refused(tmp_path: Path, content: bytes | str, reason: str) -> None:
    """R18, R26: whatever the file is called."""
    path = tmp_path / "mask.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "jpeg in tiff":
        Image.fromarray(IDS).save(path, "TIFF", compression="jpeg")
    else:
        Image.fromarray(IDS).save(path, content)
    with pytest.raises(DataError, match=reason):
        read_ids(path)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tiff_masks_keep_their_numbers(tmp_path: Path, bits: int) -> None:
    (tmp_path / "mask.tif").write_bytes(tiff(IDS, bits, 1))
    np.testing.assert_array_equal(read_ids(tmp_path / "mask.tif"), IDS)


def test_r15_ids_that_are_ignored_and_classes_without_pixels_are_stated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """R15: three listed classes, and masks that hold 0, 1 and 255."""
    ids = np.where(IDS == 5, 255, IDS % 2).astype(np.uint8)
    location = pairs(tmp_path, 1, 1, ids)
    (tmp_path / "labels.txt").write_text("background\nthing\nobject\n")
    open_segmentation(location)
    said = " ".join(capfd.readouterr().err.split())
    assert "has a pixel of the class 'object' (id 2)." in said
    assert "The id 255 is ignored: 4 pixels, 8.3% of those" in said
    assert "give it an id from the class list" in said


def test_r15_a_class_that_only_one_part_shows_is_stated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """R15: listed, tested, and never learned."""
    location = pairs(tmp_path, 1, 1)
    Image.fromarray(IDS % 3).save(tmp_path / "annotations" / "val" / "0.png")
    (tmp_path / "labels.txt").write_text("background\nthing\nobject\n")
    open_segmentation(location)
    said = " ".join(capfd.readouterr().err.split())
    assert "No training mask of" in said
    assert "'object' (id 2)" in said
    assert "255" not in said


def test_r15_nothing_is_said_where_all_classes_are_seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_segmentation(pairs(tmp_path, 1, 1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("name", "value"), [("thing 255", 255), ("thing 255 (ignore)", IGNORED)])
def test_r15_a_list_that_names_255_decides_what_it_is(tmp_path: Path, name: str, value: int) -> None:
    """R15: an ignore id that is also a class."""
    names = [f"thing {number}" for number in range(300)]
    names[255] = name
    (tmp_path / "labels.txt").write_text("\n".join(names))
    (tmp_path / "mask.tif").write_bytes(tiff(np.array([[255, 256]]), 16, 1))
    found = ids_of(tmp_path).read(tmp_path / "mask.tif")
    assert found.tolist() == [[value, 256 if value > 0 else 255]]


@pytest.mark.parametrize(("rows", "due"), [("1 3 4", 2), ("2 3", 1), ("1 1 2", 2)], ids=["one lost", "no header", "one twice"])
def test_r17_a_list_of_ade20k_without_a_line_is_refused(tmp_path: Path, rows: str, due: int) -> None:
    """R17: the names of all classes behind it would shift. An empty line shifts nothing, as every line has its number."""
    whole = ["Idx\tRatio\tName", "1\t0.1\twall, inside", "", "2\t0.1\tsky", ""]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(whole))
    assert ids_of(tmp_path).classes == ("wall", "sky")
    lines = [f"{number}\t0.1\tclass {number}" for number in rows.split()]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tName", *lines]))
    with pytest.raises(DataError, match=rf"objectInfo150.txt has the id \d where {due} is due"):
        ids_of(tmp_path)
