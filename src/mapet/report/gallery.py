"""A visual vocabulary in pictures: patches that share a code, with what is around them, and how often every code is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mapet.report.drawing import ABSENT, BLUE, SOFT, VERMILION, WIDTH, Picture, canvas, short, slug
from mapet.report.prediction import patch_pixels
from mapet.tokenizers.scoring.information import entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CODES, PATCHES, REACH = 16, 8, 2
_GAP = 0.12
_LABELS = 0.85


@dataclass(frozen=True)
class Vocabulary:
    """Codes to draw, and where they occur.

    Args:
        title: Of the run or the tokenizer that they belong to.
        ids: (n, gh, gw), the tokens of the images that patches are taken from.
        image: From an index below n to the image, (H, W, 3) uint8; only called for images that are drawn.
        usage: (vocab,) int64, how often every code occurs.
        seed: Of random codes and of the order of images.
        images: What the n images are, for captions: "training images drawn by the seed".
        counted: What `usage` counts, for captions: "128,000 tokens of 2,000 images".
    """

    title: str
    ids: np.ndarray
    image: Callable[[int], np.ndarray]
    usage: np.ndarray
    seed: int
    images: str
    counted: str

    @cached_property
    def seen(self) -> np.ndarray:
        """(vocab,) int64, how often every code occurs in `ids`."""
        return np.bincount(self.ids.ravel(), minlength=len(self.usage))

    @cached_property
    def order(self) -> list[int]:
        """All images in the order in which they are drawn from."""
        return _drawn(range(len(self.ids)), len(self.ids), self.seed, "images")

    def most_used(self, count: int) -> list[int]:
        """Up to `count` codes, the most used first, of those that can be shown."""
        return [int(code) for code in np.argsort(-self.usage, kind="stable")[:count] if self.seen[code]]

    def random(self, count: int, without: Sequence[int] = ()) -> list[int]:
        """Up to `count` codes drawn by the seed from those that can be shown, the most used first."""
        codes = [code for code in np.flatnonzero(self.seen).tolist() if code not in without]
        return sorted(_drawn(codes, count, self.seed, "tokens"), key=lambda code: -self.usage[code])


def vocabulary_figures(vocabulary: Vocabulary) -> list[Picture]:
    """The most used codes; random others; the usage of all codes."""
    most_used = vocabulary.most_used(CODES)
    others = vocabulary.random(CODES, without=most_used)
    pictures = [gallery(vocabulary, most_used, "most-used", f"The {len(most_used)} most used codes")]
    if others:
        pictures.append(gallery(vocabulary, others, "random", f"{len(others)} random other codes"))
    return [*pictures, usage_figure(vocabulary)]


def gallery(vocabulary: Vocabulary, codes: Sequence[int], name: str, title: str) -> Picture:
    """One row a code, one tile a patch that carries it.

    Args:
        vocabulary: What the codes belong to.
        codes: Codes; one that does not occur gets an empty row with a note.
        name: Part of the name of the file.
        title: Above the figure.
    """
    patch = patch_pixels(vocabulary.image(vocabulary.order[0]), vocabulary.ids.shape[1:])
    tile = (WIDTH - _LABELS) / PATCHES
    with canvas(0.4 + tile * len(codes)) as drawn:
        axes = drawn.figure.subplots()
        for row, code in enumerate(codes):
            _draw_row(axes, row, code, vocabulary, patch)
        axes.set(xlim=(0, PATCHES), ylim=(len(codes), 0), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(title)
    return drawn.picture(
        f"codebook-{name}-{slug(vocabulary.title)}",
        f"{title}: each row shows up to {PATCHES} patches that share a code, with their surroundings. Codes: "
        f"{', '.join(map(str, codes))}.",
        f"Each row: patches with the same code (its number, its share of all tokens), framed, with {REACH} "
        f"patches around them; pale blue is outside the image. From {len(vocabulary.ids):,} {vocabulary.images}.",
    )


def usage_figure(vocabulary: Vocabulary) -> Picture:
    """How often every code is used, most used first, on a logarithmic scale."""
    counts = np.sort(vocabulary.usage)[::-1]
    used, equal = int((counts > 0).sum()), counts.sum() / len(counts)
    perplexity = 2 ** entropy(counts)
    with canvas(3.0) as drawn:
        axes = drawn.figure.subplots()
        heights = np.append(counts[:used], counts[used - 1])
        axes.fill_between(np.arange(used + 1), heights, step="post", color=BLUE, alpha=0.85, lw=0)
        axes.axhline(equal, color=VERMILION, linestyle="--", linewidth=1.1, label=f"equal use: {short(equal)}")
        limits = max(0.5, counts[used - 1] / 2), counts[0] * 1.6
        axes.set(xlim=(0, len(counts)), yscale="log", xlabel="codes, most used first", ylim=limits)
        axes.set_title(f"Uses of every code: {used:,} of {len(counts):,} used, perplexity {perplexity:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        drawn.figure.legend(loc="outside lower left")
    return drawn.picture(
        f"codebook-usage-{slug(vocabulary.title)}",
        f"Codes sorted by use, on a logarithmic scale: {used} of {len(counts)} codes are used, the most used one {counts[0]:,} "
        f"times, the perplexity is {perplexity:.0f}.",
        f"{vocabulary.counted}. Perplexity is the number of codes that would have the same entropy if all were used equally.",
    )


def occurrences(ids: np.ndarray, code: int, order: Sequence[int]) -> list[tuple[int, int, int]]:
    """(image, row, column) of patches with this code, images in the given order, each image once before any comes again."""
    rank = {image: place for place, image in enumerate(order)}
    places = sorted(map(tuple, np.argwhere(ids == code).tolist()), key=lambda place: rank[place[0]])
    earlier: dict[int, int] = {}
    turns = []
    for place in places:
        earlier[place[0]] = turn = earlier.get(place[0], -1) + 1
        turns.append((turn, place))
    return [place for _, place in sorted(turns, key=lambda entry: entry[0])]


def surrounded(image: np.ndarray, row: int, column: int, patch: tuple[int, int], reach: int) -> np.ndarray:
    """A patch with `reach` patches on every side, pale blue beyond the border: ((2 reach + 1) ph, (2 reach + 1) pw, 3) uint8."""
    height, width = patch
    full = (image.shape[0] + 2 * reach * height, image.shape[1] + 2 * reach * width, 3)
    padded = np.broadcast_to(np.array(ABSENT, np.uint8), full).copy()
    padded[reach * height : reach * height + image.shape[0], reach * width : reach * width + image.shape[1]] = image
    span = 2 * reach + 1
    return padded[row * height : (row + span) * height, column * width : (column + span) * width]


def percent(share: float) -> str:
    """A share as people write it: 12 %, 0.3 %, <0.01 %."""
    return f"{100 * share:.2g} %" if share >= 1e-4 else "<0.01 %"


def _drawn(items: Sequence[int], count: int, seed: int, purpose: str) -> list[int]:
    """`count` of `items`, or all of them, in an order drawn by the seed."""
    import torch

    from mapet.runtime.seeding import seeded_generator

    order = torch.randperm(len(items), generator=seeded_generator(seed, "report", purpose))
    return [items[index] for index in order[:count].tolist()]


def _draw_row(axes: Axes, row: int, code: int, vocabulary: Vocabulary, patch: tuple[int, int]) -> None:
    share = percent(vocabulary.usage[code] / vocabulary.usage.sum())
    label = {"ha": "right", "va": "center", "linespacing": 1.1}
    axes.text(-0.12, row + 0.5, f"{code}\n", fontsize=8.5, weight="bold", **label)
    axes.text(-0.12, row + 0.5, f"\n{share if vocabulary.usage[code] else 'unused'}", fontsize=8, color=SOFT, **label)
    places = occurrences(vocabulary.ids, code, vocabulary.order)[:PATCHES]
    for column, (image, at_row, at_column) in enumerate(places):
        pixels = surrounded(vocabulary.image(image), at_row, at_column, patch, REACH)
        _draw_tile(axes, row, column, pixels)
    if not places:
        axes.text(_GAP / 2, row + 0.5, f"in none of {len(vocabulary.ids):,} images", va="center", fontsize=8.5, color=SOFT)


def _draw_tile(axes: Axes, row: int, column: int, pixels: np.ndarray) -> None:
    from matplotlib.patches import Rectangle

    half = _GAP / 2
    size = 1 - _GAP
    axes.imshow(pixels, extent=(column + half, column + 1 - half, row + 1 - half, row + half), interpolation="nearest")
    axes.add_patch(Rectangle((column + half, row + half), size, size, fill=False, edgecolor="#c3cad2", linewidth=0.4))
    side = size / (2 * REACH + 1)
    for color, width, outside in (("white", 0.6, 0.035), (VERMILION, 1.1, 0.018)):  # around the patch, of which nothing is covered
        corner = (column + 0.5 - side / 2 - outside, row + 0.5 - side / 2 - outside)
        axes.add_patch(Rectangle(corner, side + 2 * outside, side + 2 * outside, fill=False, edgecolor=color, linewidth=width))
