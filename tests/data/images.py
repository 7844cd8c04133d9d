"""Small images for the tests of this folder."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def random_image(seed: int, width: int = 12, height: int = 9) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int) -> bytes:
    return encoded(random_image(seed))


def write_images(folder: Path, names: str, first_seed: int = 0) -> None:
    """One distinct PNG for each of the space-separated relative paths."""
    for seed, name in enumerate(names.split(), first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
