"""Encoded bytes to 8-bit RGB, whatever people have: rotated phone pictures, CMYK, palettes, transparency, 16-bit scans.

Every image file is opened here, masks and pictures of a report included: only the formats listed in `FORMATS`, recognised by their
content, and never more than `MOST_PIXELS` of them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from mapet.data.image_names import SUFFIXES
from mapet.errors import UnreadableImageError

# The formats that are decoded. Others of Pillow are not: PostScript, for example, would start Ghostscript.
FORMATS = tuple(sorted(SUFFIXES))
MOST_PIXELS = 178_956_970  # of Pillow too: 0.7 GB in memory
_UNDO_ROTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)
_SIGNED = 2
# Pillow stretches grey levels of 2 and 4 bits to 0 to 255; the pixel that is transparent it leaves as stored.
_STRETCHED = {"L;2": 85, "L;4": 17}
_ROWS_AT_ONCE = 1 << 22  # pixels


@dataclass(frozen=True)
class StoredImage:
    """An image as its file holds it, upright, in the mode that Pillow gives it; and what that mode leaves out.

    Args:
        image: Loaded; of an animation the first frame.
        raw_mode: How its pixels are stored, such as "L;4" or "I;12".
        white_is_zero: A TIFF that stores a negative; Pillow turns its numbers where they have 8 bits or fewer.
    """

    image: Image.Image
    raw_mode: str
    white_is_zero: bool

    @property
    def stretch(self) -> int:
        """What Pillow has multiplied the stored numbers with."""
        return _STRETCHED.get(self.raw_mode, 1)


def decode_image(content: bytes) -> Image.Image:
    """Decodes one image.

    The camera's rotation (EXIF) is applied; an EXIF block that cannot be read is ignored. Transparency is laid over white. Grey of
    12 and 16 bits is scaled to 8 bits by its full range, so a dim scan stays dim; of 16-bit colours the upper 8 bits are taken.
    Floating-point pixels must lie in [0, 1]. A TIFF may store a negative. Of an animation the first frame is taken.

    Args:
        content: A whole file in one of `FORMATS`.

    Returns:
        A PIL image in mode RGB.

    Raises:
        UnreadableImageError: The bytes are no image, are cut short, or hold pixels without a meaning in 8 bits.
    """
    with _in_words(content):
        return _to_rgb(_load(content, FORMATS))


def read_stored(content: bytes, formats: Collection[str] = FORMATS) -> StoredImage:
    """Decodes one image without a change to its numbers.

    Args:
        content: A whole file.
        formats: Those allowed, a part of `FORMATS`.

    Raises:
        UnreadableImageError: The bytes are no image of such a format, or are cut short.
    """
    with _in_words(content, formats):
        return _load(content, formats)


def image_size(content: bytes) -> tuple[int, int]:
    """Width and height of an image as `decode_image` returns it, from its header where that is enough.

    Raises:
        UnreadableImageError: The bytes are no image.
    """
    with _in_words(content):
        image = _open(content, FORMATS)
        if image.format == "TIFF":
            image.load()  # turns it, in some versions of Pillow
        width, height = image.size
        return (height, width) if _orientation(image) in _TURNED else (width, height)


def is_turned(content: bytes) -> bool:
    """Whether the EXIF of an image says that it is stored in another position than it is shown; False where it cannot be read."""
    try:
        with _in_words(content):
            return _orientation(_open(content, FORMATS)) in _UNDO_ROTATION
    except UnreadableImageError:
        return False


@contextmanager
def _in_words(content: bytes, formats: Collection[str] = FORMATS) -> Iterator[None]:
    """Turns what Pillow raises into the reason why an image is unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"not an image in a known format, or its header is damaged (it begins with {content[:12]!r}); known: "
            + ", ".join(formats)
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(_too_large()) from error
    except MemoryError as error:
        raise UnreadableImageError("there is not enough memory to decode it; make it smaller or cut it into tiles") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImageError(f"damaged or cut short: {error or type(error).__name__}") from error


def _too_large() -> str:
    return f"more than {MOST_PIXELS:,} pixels, the limit; make it smaller or cut it into tiles"


def _open(content: bytes, formats: Collection[str]) -> ImageFile.ImageFile:
    """Reads the header."""
    if not content:
        raise UnreadableImageError("the file is empty")
    Image.init()
    image = Image.open(io.BytesIO(content), formats=[name for name in formats if name in Image.OPEN])
    if image.width * image.height > MOST_PIXELS:
        raise UnreadableImageError(_too_large())
    return image


def _load(content: bytes, formats: Collection[str]) -> StoredImage:
    image = _open(content, formats)
    arguments = image.tile[0].args if image.tile else ""  # gone once the image is loaded
    raw_mode = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    white_is_zero = isinstance(image, TiffImagePlugin.TiffImageFile) and _is_negative(image)
    image.load()  # a TIFF is turned by Pillow meanwhile, and then has no orientation any more
    return StoredImage(_upright(image), raw_mode, white_is_zero)


def _is_negative(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether 0 is white; refuses what Pillow would take for something else."""
    tags = image.tag_v2
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE) or (1,))
    if bits <= 8 and _SIGNED in (tags.get(TiffImagePlugin.SAMPLEFORMAT) or ()):
        raise UnreadableImageError("8-bit pixels with a sign, which have no meaning as colours; convert the file to plain 8 bits")
    if bits > 8 and len(image.getbands()) > 1 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:
        raise UnreadableImageError(f"{bits}-bit colours in one plane each; convert the file to 8 bits, or interleave its colours")
    return tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # nearly anything, on a damaged block; the pixels are whole
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """The image as it was taken. Unlike `ImageOps.exif_transpose`, does not write EXIF anew, which fails where a block is odd."""
    method = _UNDO_ROTATION.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(stored: StoredImage) -> Image.Image:
    image, transparent = stored.image, stored.image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        return _from_numbers(stored, transparent if isinstance(transparent, int) else None)
    if stored.raw_mode.startswith("RGB;16") and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # as the colours
    elif isinstance(transparent, int):
        image.info["transparency"] = transparent * stored.stretch
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_numbers(stored: StoredImage, transparent: int | None) -> Image.Image:
    """RGB of grey pixels that are integers of more than 8 bits or floating-point numbers, a few rows at a time."""
    numbers = np.asarray(stored.image)
    highest = 1.0 if stored.image.mode == "F" else 4095.0 if stored.raw_mode == "I;12" else 65535.0
    lowest_found, highest_found = numbers.min(), numbers.max()  # NaN where there is one
    if not (lowest_found >= 0 and highest_found <= highest):
        raise UnreadableImageError(
            f"pixels from {lowest_found} to {highest_found}, where 0 to {highest:g} is expected; convert the file to 8 or 16 bits"
        )
    grey = np.empty(numbers.shape, np.uint8)
    rows = max(1, _ROWS_AT_ONCE // numbers.shape[1])
    for start in range(0, len(numbers), rows):
        part = slice(start, start + rows)
        scaled = np.rint(numbers[part].astype(np.float64) * (255.0 / highest)).astype(np.uint8)
        grey[part] = 255 - scaled if stored.white_is_zero else scaled
        if transparent is not None:
            grey[part][numbers[part] == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
