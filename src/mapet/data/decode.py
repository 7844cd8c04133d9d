"""Encoded bytes to 8-bit RGB, whatever people have: rotated phone pictures, CMYK, palettes, transparency, 16-bit scans."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mapet.errors import UnreadableImageError

_UNDO_ROTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(content: bytes) -> Image.Image:
    """Decodes one image.

    The camera's rotation (EXIF) is applied; an EXIF block that cannot be read is ignored. Transparency is laid over white. 16-bit
    grey is scaled to 8 bits by its full range, so a dim scan stays dim; floating-point pixels must lie in [0, 1]. Of an animation
    the first frame is taken.

    Args:
        content: A whole file in any format that Pillow reads.

    Returns:
        A PIL image in mode RGB.

    Raises:
        UnreadableImageError: The bytes are no image, are cut short, or hold pixels without a meaning in 8 bits.
    """
    if not content:
        raise UnreadableImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            image.load()  # a TIFF is turned by Pillow meanwhile, and then has no orientation any more
            return _to_rgb(_upright(image))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"not an image in a known format, or its header is damaged (it begins with {content[:12]!r})"
        ) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImageError(f"more than {limit:,} pixels, Pillow's limit; make it smaller or cut it into tiles") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImageError(f"damaged or cut short: {error or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image as it was taken. Unlike `ImageOps.exif_transpose`, does not write EXIF anew, which fails where a block is odd."""
    try:
        method = _UNDO_ROTATION.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # nearly anything, on a damaged block; the pixels are whole
        return image
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(pixels: np.ndarray, mode: str) -> np.ndarray:
    highest = 1.0 if mode == "F" else 65535.0
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= highest):
        raise UnreadableImageError(
            f"pixels from {pixels.min()} to {pixels.max()}, where 0 to {highest:g} is expected; convert the file to 8 or 16 bits"
        )
    return np.rint(pixels.astype(np.float64) * (255.0 / highest)).astype(np.uint8)
