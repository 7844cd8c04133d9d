from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.data.mask_files import IGNORED, ids_of, read_ids
from mapet.data.masked import open_segmentation
from mapet.errors import DataError
from tests.data_root import data_root
from tests.evaluation.segmentation.pictures import BRIGHT, CLASSES, DARK, GROUND, VOID, pair, write_folder, write_pair


def test_images_come_with_their_masks_and_ignored_names_are_no_classes(folder: Path) -> None:
    train, test = open_segmentation(str(folder))
    assert (len(train), len(test)) == (6, 2)
    assert train.class_names == test.class_names == ("ground", "bright", "dark")
    _, ids = pair(6)
    expected = np.select([ids == GROUND, ids == BRIGHT, ids == DARK, ids == VOID], [0, 1, 2, IGNORED])
    np.testing.assert_array_equal(test.read_mask(0), expected)
    assert test.describe(0).endswith("images/val/picture6.png")
    counted = sum(np.bincount(part.read_mask(i)[part.read_mask(i) >= 0], minlength=3) for part in [test] for i in range(2))
    np.testing.assert_array_equal(test.class_pixels, counted)


def test_255_is_ignored(folder: Path) -> None:
    path = folder / "annotations" / "val" / "picture6.png"
    ids = np.array(Image.open(path))
    ids[20, 7] = 255
    Image.fromarray(ids).save(path)
    assert open_segmentation(str(folder))[1].read_mask(0)[20, 7] == IGNORED


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "ADEChallengeData2016", names=("training", "validation"))
    (root / "labels.txt").unlink()
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1576\t11664\t1172\t1\twall, wood", "2\t0.1072\t6046\t612\t1\tbuilding"]
    (root / "objectInfo150.txt").write_text("\n".join([*lines, "3\t0.08\t8265\t796\t1\tsky"]) + "\n")
    train, test = open_segmentation(str(tmp_path))  # the only folder in it
    assert train.class_names == ("wall", "building", "sky")
    np.testing.assert_array_equal(test.read_mask(0), pair(6)[1].astype(int) - 1)


def test_lists_of_names_split_a_flat_folder(tmp_path: Path) -> None:
    for number in range(5):
        write_pair(tmp_path, "", f"picture{number}", number)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "train.txt").write_text("picture3\npicture0.png\n\npicture1\n")
    (tmp_path / "val.txt").write_text("images/picture4.png\n")
    train, test = open_segmentation(str(tmp_path))
    assert [Path(train.describe(index)).stem for index in range(3)] == ["picture3", "picture0", "picture1"]
    assert [Path(test.describe(index)).stem for index in range(len(test))] == ["picture4"]
    (tmp_path / "val.txt").write_text("picture1\n")
    with pytest.raises(DataError, match=r"share 1 images, such as picture1"):
        open_segmentation(str(tmp_path))
    (tmp_path / "val.txt").write_text("picture9\n")
    with pytest.raises(DataError, match=r"val.txt names 'picture9'"):
        open_segmentation(str(tmp_path))


def test_one_in_five_is_held_out_by_content_whatever_its_name(tmp_path: Path) -> None:
    splits = []
    for names in (range(30), reversed(range(30))):
        root = tmp_path / str(len(splits))
        for seed, name in zip(range(30), names, strict=True):
            write_pair(root, "", f"picture{name:02}", seed)
        (root / "labels.txt").write_text("\n".join(CLASSES))
        train, test = open_segmentation(str(root))
        assert not {*train.keys} & {*test.keys}
        assert 1 <= len(test) <= 12
        splits.append({*test.keys})
    assert splits[0] == splits[1]


def test_palette_and_16_bit_masks_hold_ids(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.flatten().tolist())
    palette.putpalette([200, 10, 30] * 256)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(ids.astype(np.uint16) + 300).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "palette.png"), ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "deep.png"), ids.astype(int) + 300)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_ids_and_no_grey_levels(tmp_path: Path, bits: int) -> None:
    """A PNG written by hand, as Pillow writes none of 2 or 4 bits."""
    ids = np.arange(2**bits, dtype=np.uint8)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = np.packbits(np.unpackbits(ids[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
    header = struct.pack(">IIBBBBB", len(ids), 1, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(read_ids(tmp_path / "mask.png"), ids[None])


def remove_mask(root: Path) -> None:
    (root / "annotations" / "train" / "picture2.png").unlink()


def change_mask(root: Path, change) -> None:
    path = root / "annotations" / "train" / "picture2.png"
    change(np.array(Image.open(path))).save(path)


def foreign_id(root: Path) -> None:
    def change(ids: np.ndarray) -> Image.Image:
        ids[3, 5] = 4
        return Image.fromarray(ids)

    change_mask(root, change)


def remove_validation(root: Path) -> None:
    (root / "images" / "val").rename(root / "images" / "later")


def damage(root: Path) -> None:
    path = root / "annotations" / "train" / "picture2.png"
    path.write_bytes(path.read_bytes()[:60])


BAD = {
    "missing mask": (remove_mask, r"picture2.png has no mask .*annotations/train/picture2.png \(1 of 6 images"),
    "other size": (
        lambda root: change_mask(root, lambda ids: Image.fromarray(ids).resize((28, 20), Image.Resampling.NEAREST)),
        r"picture2.png is 28 x 20 pixels, its image .*picture2.png is 56 x 40",
    ),
    "foreign id": (foreign_id, r"picture2.png has the id 4 \(row 3, column 5\).*labels.txt.*allowed: 0 to 3, 255"),
    "colours": (
        lambda root: change_mask(root, lambda ids: Image.fromarray(ids).convert("RGB")),
        r"picture2.png holds colours \(mode RGB\)",
    ),
    "damaged": (damage, r"picture2.png cannot be read"),
    "no class list": (lambda root: (root / "labels.txt").unlink(), r"labels.txt is not there.*one a line.*objectInfo150.txt"),
    "one class": (
        lambda root: (root / "labels.txt").write_text("all\nvoid (ignore)"),
        r"labels.txt names one class only \('all'\)\. Give",
    ),
    "no class": (lambda root: (root / "labels.txt").write_text("\n"), r"labels.txt names no class\. Give"),
    "no masks": (
        lambda root: (root / "annotations").rename(root / "masks"),
        r"pictures has no annotations/; it holds images, masks\. Expected",
    ),
    "no images": (lambda root: (root / "images").rename(root / "photos"), r"pictures has no images/; it holds annotations, photos"),
    "neither": (
        lambda root: [(root / name).rename(root / new) for name, new in (("images", "a"), ("annotations", "b"))],
        r"pictures has no images/ and no annotations/; it holds a, b\.",
    ),
    "no validation": (remove_validation, r"has 'train' and lacks val"),
    "all ignored": (lambda root: (root / "labels.txt").write_text("a (ignore)\nb\nc (ignore)\nd (ignore)\ne"), "show 1 classes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_before_anything_is_trained(folder: Path, name: str) -> None:
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        open_segmentation(str(folder))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere.*Expected: images/train"):
        open_segmentation(str(tmp_path / "nowhere"))


@pytest.mark.skipif(data_root() is None or not (data_root() / "camvid").is_dir(), reason="needs CamVid")  # type: ignore[operator]
def test_camvid_has_eleven_classes_and_the_twelfth_is_ignored() -> None:
    ids = ids_of(data_root() / "camvid")  # type: ignore[operator]
    assert len(ids.classes) == 11
    mask = sorted((data_root() / "camvid" / "annotations" / "val").iterdir())[0]  # type: ignore[operator]
    raw, classes = read_ids(mask), ids.read(mask)
    assert (raw == 11).any()
    np.testing.assert_array_equal(classes, np.where(raw == 11, IGNORED, raw))


@pytest.mark.parametrize("names", [("Train", "Valid"), ("trainval", "test"), ("training", "dev")], ids="-".join)
def test_usual_names_of_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    """R2: the one list of split names."""
    train, test = open_segmentation(str(write_folder(tmp_path / "folders", names=names)))
    assert (len(train), len(test)) == (6, 2)
    for number in range(5):
        write_pair(tmp_path / "listed", "", f"picture{number}", number)
    (tmp_path / "listed" / "labels.txt").write_text("\n".join(CLASSES))
    (tmp_path / "listed" / f"{names[0]}.txt").write_bytes(b"\xef\xbb\xbfpicture3\r\npicture0.jfif\r\n")
    (tmp_path / "listed" / f"{names[1]}.txt").write_text("picture4\n")
    train, test = open_segmentation(str(tmp_path / "listed"))
    assert [Path(train.describe(index)).stem for index in range(2)] == ["picture3", "picture0"]
    assert len(test) == 1


def test_images_and_masks_may_spell_a_split_otherwise(tmp_path: Path) -> None:
    """R2."""
    root = write_folder(tmp_path)
    (root / "annotations" / "train").rename(root / "annotations" / "Training")
    (root / "annotations" / "val").rename(root / "annotations" / "validation")
    assert len(open_segmentation(str(root))[0]) == 6


def test_the_test_part_is_taken_where_the_user_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R2."""
    root = write_folder(tmp_path)
    for number in range(3):
        write_pair(root, "test", f"other{number}", number)
    assert len(open_segmentation(str(root))[1]) == 2
    assert "left out: test. --split test evaluates on that one." in capsys.readouterr().err
    assert len(open_segmentation(f"{root}#split=test")[1]) == 3
    with pytest.raises(DataError, match="has no split 'tset'"):
        open_segmentation(f"{root}#split=tset")
    with pytest.raises(DataError, match="--class-depth is about class folders"):
        open_segmentation(f"{root}#class-depth=2")


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    """Images and masks are paired by name."""
    path = folder / "annotations" / "val" / "picture6.png"
    path.with_suffix(".bmp").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"picture6\.bmp and .*picture6\.png have one name but for the suffix"):
        open_segmentation(str(folder))


def test_a_mask_that_is_a_named_pipe_is_refused(folder: Path) -> None:
    """F7."""
    path = folder / "annotations" / "val" / "picture6.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"picture6\.png cannot be read: .*a named pipe, not a regular file"):
        open_segmentation(str(folder))
