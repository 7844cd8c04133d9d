"""A small folder of images with masks: a bright or dark part at a random place, whose class is told by its brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "bright", "void (ignore)", "dark")
WIDTH, HEIGHT = 56, 40
# ids in the masks; classes are numbered 0, 1, 2, as the third name is ignored
GROUND, BRIGHT, VOID, DARK = range(4)


def pair(seed: int) -> tuple[Image.Image, np.ndarray]:
    """An RGB image and its ids (HEIGHT, WIDTH)."""
    generator = np.random.default_rng(seed)
    ids = np.full((HEIGHT, WIDTH), GROUND, np.uint8)
    for kind in (BRIGHT, DARK):
        top, left = generator.integers(HEIGHT - 20), generator.integers(WIDTH - 20)
        ids[top : top + 20, left : left + 20] = kind
    ids[:2] = VOID
    level = np.array([128, 240, 128, 10])[ids]
    pixels = level[..., None] + generator.integers(-8, 8, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), ids


def write_pair(root: Path, part: str, name: str, seed: int) -> None:
    image, ids = pair(seed)
    for folder in ("images", "annotations"):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
    image.save(root / "images" / part / f"{name}.png")
    Image.fromarray(ids).save(root / "annotations" / part / f"{name}.png")


def write_folder(root: Path, train: int = 6, test: int = 2, names: tuple[str, str] = ("train", "val")) -> Path:
    """Two folders of pairs and their class list."""
    for number in range(train + test):
        write_pair(root, names[number >= train], f"picture{number}", number)
    (root / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    return root
