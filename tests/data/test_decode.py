import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from mapet.data import decode
from mapet.data.decode import decode_image
from mapet.errors import UnreadableImageError
from tests.data.images import encoded, random_image

SMOOTH = Image.fromarray(np.mgrid[0:240:16j, 0:240:24j].astype(np.uint8).transpose(1, 2, 0)[..., [0, 1, 0]])


def pixels(content: bytes) -> np.ndarray:
    image = decode_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_plain_png_is_unchanged():
    assert np.array_equal(pixels(encoded(random_image(0))), np.asarray(random_image(0)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = np.asarray(SMOOTH)
    undo = {  # what the camera did to the upright picture before it wrote the tag
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    assert np.array_equal(pixels(encoded(stored, "PNG", exif=exif)), upright)


def exif_block(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF with these tags, types and values; values of more than four bytes follow the directory."""
    directory, values = b"", b""
    for tag, kind, value in entries:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 14 + 12 * len(entries) + len(values))
        values += value if len(value) > 4 else b""
        directory += struct.pack("<HHI", tag, kind, len(value) if kind == 2 else 1) + place
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + values


def test_odd_exif_blocks_do_not_hide_the_rotation():
    width_in_words, resolution_in_words = (0x0100, 2, b"seventy\0"), (0x011A, 2, b"seventy\0")
    for odd in (width_in_words, resolution_in_words):
        content = encoded(SMOOTH, "JPEG", exif=exif_block(odd, (0x0112, 3, struct.pack("<H", 3))))
        assert np.array_equal(pixels(content), pixels(encoded(SMOOTH, "JPEG"))[::-1, ::-1])


@pytest.mark.parametrize("block", [b"Exif\0\0garbage", b"Exif\0\0II*\0", exif_block((0x0112, 2, b"seventy\0"))])
def test_damaged_exif_blocks_are_ignored(block):
    for kind in ("JPEG", "PNG"):
        assert np.array_equal(pixels(encoded(SMOOTH, kind, exif=block)), pixels(encoded(SMOOTH, kind)))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_rotated_tiff_is_turned_once(orientation):
    content = encoded(SMOOTH, "TIFF", tiffinfo={0x0112: orientation})
    assert np.array_equal(pixels(content), np.rot90(np.asarray(SMOOTH), -1 if orientation == 6 else 0))


def test_cmyk_jpeg_keeps_its_colours():
    content = encoded(SMOOTH.convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert np.abs(pixels(content).astype(int) - np.asarray(SMOOTH)).max() < 8


def test_greyscale_png_becomes_three_equal_channels():
    grey = SMOOTH.convert("L")
    assert np.array_equal(pixels(encoded(grey)), np.asarray(grey)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_tiff():
    inside = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert pixels(encoded(Image.fromarray(inside), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(UnreadableImageError, match=r"pixels from 0\.0 to 300\.0, where 0 to 1"):
        decode_image(encoded(Image.fromarray(inside * 300), "TIFF"))


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    assert pixels(encoded(image)).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]


def test_palette_with_and_without_transparency():
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert pixels(encoded(palette)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    transparent = encoded(palette, "PNG", transparency=bytes([255, 0]))
    assert pixels(transparent).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


def test_black_and_white_and_one_pixel():
    assert pixels(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"Dear diary, today", r"not an image in a known format, .*\(it begins with b'Dear diary, '\)"),
        (encoded(SMOOTH, "JPEG")[:-200], "damaged or cut short: .*[Tt]runcated"),
        (encoded(SMOOTH, "JPEG")[:30], "not an image|damaged"),
        (encoded(random_image(0))[:-80], "damaged or cut short"),
        (encoded(random_image(0)).replace(b"IDAT", b"IDXT"), "its header is damaged"),
    ],
    ids=["empty", "text", "cut_jpeg", "cut_jpeg_header", "cut_png", "broken_png"],
)
def test_unreadable_bytes_are_named_in_words(content, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(content)


def test_enormous_image_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(decode, "MOST_PIXELS", 200)
    assert pixels(encoded(Image.new("RGB", (150, 1)))).shape == (1, 150, 3)
    with pytest.raises(UnreadableImageError, match="more than 200 pixels, the limit; make it smaller"):
        decode_image(encoded(Image.new("RGB", (201, 1))))


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        whole = np.frombuffer(encoded(SMOOTH, kind), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 5)] = rng.integers(0, 256, 5)
            with suppress(UnreadableImageError):
                assert decode_image(damaged.tobytes()).mode == "RGB"
