"""Pillow's mode is not the meaning of pixels (R18, R27), and not every format that Pillow knows is decoded (R26, F13, F7)."""

import ast
import shutil
import struct
import subprocess
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from mapet.data import decode
from mapet.data.decode import decode_image, image_size
from mapet.errors import UnreadableImageError
from tests.data.images import encoded, random_image
from tests.data.raw_images import png, tiff
from tests.parsed import PACKAGE, nodes_of_package

DEEP = np.array([[0, 257 * 10, 65535]])
COLOURS = np.array([[[0, 1000, 65535], [30000, 40000, 50000]]])


def first_row(content: bytes) -> list:
    pixels = np.asarray(decode_image(content))[0]
    return pixels[:, 0].tolist() if (pixels == pixels[:, :1]).all() else pixels.tolist()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(DEEP, 16, 1), [0, 10, 255]),
        (tiff(DEEP, 16, 0), [255, 245, 0]),
        (tiff(DEEP // 257, 8, 0), [255, 245, 0]),
        (tiff(np.array([[0, 100, 2048, 4095]]), 12, 1), [0, 6, 128, 255]),
        (tiff(np.array([[0, 0.5, 1]]), 32, 1, kind=3), [0, 128, 255]),
        (tiff(np.array([[0, 0.5, 1]]), 32, 0, kind=3), [255, 127, 0]),
        (tiff(np.array([[[10, 255], [10, 0]]]), 8, 1, extra=2), [10, 255]),
        (tiff(np.array([[[10, 255], [5, 128], [0, 0]]]), 8, 1, extra=1), [10, 132, 255]),
        (tiff(COLOURS // 257, 8, 2, planes=2), (COLOURS // 257)[0].tolist()),
        (tiff(COLOURS, 16, 2), (COLOURS // 256)[0].tolist()),
        (tiff(np.array([[[0, 0, 0, 0], [255, 0, 0, 0]]]), 8, 5), [[255, 255, 255], [0, 255, 255]]),
        (tiff(np.array([[[128, 0, 0]]]), 8, 8), [119]),
        (encoded(Image.new("YCbCr", (1, 1), (76, 85, 255)), "TIFF"), [[254, 0, 0]]),
    ],
    ids=[
        "16",
        "16-white",
        "8-white",
        "12",
        "float",
        "float-white",
        "alpha",
        "premultiplied",
        "planes",
        "16-colours",
        "cmyk",
        "lab",
        "ycbcr",
    ],
)
def test_r18_tiff(content, expected):
    """R18: numbers of a TIFF mean what its tags give."""
    assert first_row(content) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(COLOURS, 16, 2, planes=2), "16-bit colours in one plane each"),
        (tiff(np.array([[[0, 0, 0, 0], [65535, 0, 0, 0]]]), 16, 5, planes=2), "16-bit colours in one plane each"),
        (tiff(np.array([[0, -100]]), 8, 1, kind=2), "8-bit pixels with a sign"),
        (tiff(np.array([[0, -100]]), 16, 1, kind=2), "pixels from -100 to 0"),
        (tiff(np.array([[0, 2**31 - 1]]), 32, 1), "pixels from 0 to 2147483647"),
        (tiff(np.array([[0, np.nan]]), 32, 1, kind=3), "pixels from nan to nan"),
    ],
    ids=["planes", "cmyk-planes", "signed-8", "signed-16", "32-bit", "nan"],
)
def test_r18_numbers_that_mean_no_colour_are_refused(content, reason):
    """R18: what Pillow would take for something else is refused."""
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(content)


@pytest.mark.parametrize(
    ("head", "numbers", "expected"),
    [
        (b"P5 3 1 65535\n", struct.pack(">3H", 0, 2570, 65535), [0, 10, 255]),
        (b"P5 3 1 4095\n", struct.pack(">3H", 0, 2048, 4095), [0, 128, 255]),
        (b"P5 3 1 100\n", bytes([0, 50, 100]), [0, 128, 255]),
        (b"P2 3 1 1000\n", b"0 500 1000", [0, 128, 255]),
        (b"P4 3 1\n", bytes([0b01000000]), [255, 0, 255]),
        (b"P6 1 1 65535\n", struct.pack(">3H", 0, 2570, 65535), [[0, 10, 255]]),
    ],
    ids=["16", "12", "100", "plain", "bits", "colours"],
)
def test_r18_netpbm(head, numbers, expected):
    """R18: the largest value of a PGM or PPM is white."""
    assert first_row(head + numbers) == expected


def transparent(*values: int) -> tuple[bytes, bytes]:
    return b"tRNS", struct.pack(f">{len(values)}H", *values)


PALETTE = (b"PLTE", bytes([255, 0, 0, 0, 0, 255]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png([struct.pack(">3H", 0, 2570, 2571)], 3, 16, 0, transparent(2570)), [0, 255, 10]),
        (png([bytes([0, 10, 20])], 3, 8, 0, transparent(10)), [0, 255, 20]),
        (png([bytes([0x01, 0x20])], 4, 4, 0, transparent(1)), [0, 255, 34, 0]),
        (png([bytes([0b00011011])], 4, 2, 0, transparent(2)), [0, 85, 255, 255]),
        (png([bytes([0b01000000])], 3, 1, 0, transparent(0)), [255, 255, 255]),
        (png([bytes([1, 2, 3, 4, 5, 6])], 2, 8, 2, transparent(1, 2, 3)), [[255, 255, 255], [4, 5, 6]]),
        (
            png([struct.pack(">6H", 0x1234, 0, 0, 0x3400, 0, 0)], 2, 16, 2, transparent(0x1234, 0, 0)),
            [[255, 255, 255], [0x34, 0, 0]],
        ),
        (png([struct.pack(">4H", 0x1010, 65535, 0, 0)], 2, 16, 4), [16, 255]),
        (png([bytes([0, 1])], 2, 8, 3, PALETTE, (b"tRNS", bytes([255, 0]))), [[255, 0, 0], [255, 255, 255]]),
        (png([bytes([0, 1])], 2, 8, 3, PALETTE, (b"tRNS", bytes([128, 255]))), [[255, 127, 127], [0, 0, 255]]),
        (png([bytes([0b01000000])], 2, 1, 3, PALETTE, (b"tRNS", bytes([0]))), [[255, 255, 255], [0, 0, 255]]),
        (encoded(Image.new("LA", (1, 1), (10, 51))), [[206, 206, 206]]),
    ],
    ids=["16", "8", "4", "2", "1", "rgb", "rgb16", "la16", "palette", "palette-half", "palette-1", "la"],
)
def test_r27_transparency_is_laid_over_white(content, expected):
    """R27: every kind of transparency that a PNG has."""
    assert np.array_equal(
        np.asarray(decode_image(content))[0], [value if isinstance(value, list) else [value] * 3 for value in expected]
    )


def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI"])
def test_r26_other_formats_are_not_decoded_whatever_the_file_is_called(kind, monkeypatch):
    """R26, F13: PostScript never reaches Ghostscript, and no other format of Pillow's is decoded."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/bin/true")
    content = postscript() if kind == "EPS" else encoded(random_image(0), kind)
    with pytest.raises(UnreadableImageError, match=r"not an image in a known format.*known: AVIF, BMP, GIF, JPEG, "):
        decode_image(content)
    with pytest.raises(UnreadableImageError, match="not an image in a known format"):
        image_size(content)
    assert not started


@pytest.mark.parametrize("kind", decode.FORMATS)
def test_documented_formats_are_decoded(kind):
    with Image.new("RGB", (8, 8), (200, 100, 50)) as image:
        content = encoded(image, kind)
    assert np.abs(np.asarray(decode_image(content)).astype(int) - [200, 100, 50]).max() < 12
    assert image_size(content) == (8, 8)


def test_image_files_are_opened_in_one_place():
    """R26: nothing else in the package calls Image.open."""
    opening = [
        path.relative_to(PACKAGE).as_posix()
        for path, nodes in nodes_of_package().items()
        for node in nodes
        if isinstance(node, ast.Attribute) and node.attr == "open" and getattr(node.value, "id", "") == "Image"
    ]
    assert opening == ["data/decode.py"]


def huge(kind: str) -> bytes:
    """A file of a few bytes that claims 60,000 x 60,000 pixels."""
    side = 60_000
    if kind == "PNG":
        return png([b""], side, 8, 2, height=side)
    if kind == "TIFF":
        content = bytearray(tiff(np.zeros((1, 1)), 8, 1))
        for tag in (256, 257, 278):
            place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content[place : place + 4] = struct.pack("<I", side)
        return bytes(content)
    if kind == "GIF":
        return b"GIF89a" + struct.pack("<HH", side, side) + bytes(3) + b"," + struct.pack("<4H", 0, 0, side, side) + bytes(9) + b";"
    if kind == "PPM":
        return f"P6 {side} {side} 255\n".encode() + bytes(100)
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "PPM", "BMP"])
def test_f7_sizes_beyond_the_limit_are_refused_before_memory_is_taken(kind, monkeypatch):
    """F7: by the header, whatever a program has done to Pillow's own limit."""
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for read in (decode_image, image_size):
            with pytest.raises(UnreadableImageError, match="more than 178,956,970 pixels, the limit; make it smaller"):
                read(huge(kind))


def test_f7_a_frame_larger_than_its_animation_is_refused(monkeypatch):
    """F7: the size of the first frame counts too."""
    monkeypatch.setattr(decode, "MOST_PIXELS", 10_000)
    content = encoded(Image.new("P", (8, 8)), "GIF")
    frame = content.index(b",", 13)
    large = content[: frame + 5] + struct.pack("<HH", 60_000, 60_000) + content[frame + 9 :]
    with pytest.raises(UnreadableImageError):
        decode_image(large)


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
def test_f7_texts_and_profiles_that_expand_take_no_memory(name):
    """F7: 20 MB in 20 kB."""
    content = png([bytes(3)], 1, 8, 2, (name, b"x\0\0" + zlib.compress(bytes(20_000_000), 9)))
    decode_image(encoded(random_image(0)))  # loads Pillow's parts
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="too large"):
        decode_image(content)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_an_orientation_turns_a_tiff_once_and_its_size_alike():
    content = tiff(np.arange(6).reshape(2, 3), 8, 1, orientation=6)
    assert decode_image(content).size == image_size(content) == (2, 3)
