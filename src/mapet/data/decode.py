"""Encoded bytes to 8-bit RGB, whatever people have: rotated phone pictures, CMYK, palettes, transparency, 16-bit scans."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mapet.errors import DataError


class UnreadableImageError(DataError):
    """One image cannot be had; the message is the reason, in words that follow the file's name."""


def decode_image(content: bytes) -> Image.Image:
    """Decodes one image.

    The camera's rotation (EXIF) is applied. Transparency is laid over white. 16-bit grey is scaled to 8 bits by its full range, so
    a dim scan stays dim; floating-point pixels must lie in [0, 1]. Of an animation the first frame is taken.

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
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
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
