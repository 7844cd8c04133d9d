"""What the tests of the token store share: images of one's own making and a tokenizer that counts its work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.data.sources import open_source
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from mapet.tokenizers.random_projection import RandomProjection


class CountingTokenizer(RandomProjection):
    """Counts the images it tokenises; raises `failure` instead of tokenising more than `fail_after`."""

    def __init__(self, vocab_size: int = 50, seed: int = 0) -> None:
        super().__init__(image_size=8, patch_size=4, vocab_size=vocab_size, seed=seed)
        self.images = 0
        self.fail_after: int | None = None
        self.failure: type[BaseException] = KeyboardInterrupt

    def tokens(self, images: Tensor) -> Tensor:
        if self.fail_after is not None and self.images + len(images) > self.fail_after:
            raise self.failure
        self.images += len(images)
        return super().tokens(images)


def write_images(folder: Path, count: int, first: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """`count` different PNGs of `size` (height, width), 0000.png onwards, the same for the same number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return folder


def images_of(folder: Path) -> ImageSource:
    return open_source(folder, "all")


def build(folder: Path, path: Path, tokenizer: RandomProjection | None = None, limit: int = 0, **options) -> TokenStore:
    """The store of all images of `folder`, in batches of 4."""
    tokenizer = tokenizer or CountingTokenizer()
    return build_store(images_of(folder), tokenizer, path, batch_size=4, unreadable=UnreadableImages(limit), **options)


def change_one_pixel(file: Path) -> None:
    """By one level of red."""
    image = Image.open(file).copy()
    red, green, blue = image.getpixel((3, 3))
    image.putpixel((3, 3), (red ^ 1, green, blue))
    image.save(file)


def contents(store: TokenStore) -> dict[bytes, list]:
    """The tokens of every key."""
    return dict(zip(store.keys.tolist(), store.ids.tolist(), strict=True))


def expected_ids(file: Path, tokenizer: RandomProjection) -> np.ndarray:
    """The tokens (gh, gw) of one 8 x 8 image, made without the store."""
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
    return tokenizer.encode(pixels / 255)[0].numpy()
