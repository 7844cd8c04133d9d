"""The visual vocabulary: patches that share a token, and how often every token is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mapet.report.drawing import ABSENT, BLUE, SOFT, VERMILION, WIDTH, Picture, canvas, short, slug
from mapet.report.prediction import patch_pixels
from mapet.report.reading import ReportedRun, Sample, entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKENS, PATCHES = 16, 9
_GAP = 0.12


def codebook_figures(run: ReportedRun) -> list[Picture]:
    """The most used tokens; random others; the usage of all codes."""
    sample, counts = run.sample, np.bincount(run.sample.ids.ravel(), minlength=len(run.usage))
    most_used = [int(token) for token in np.argsort(-run.usage, kind="stable")[:TOKENS] if counts[token]]
    others = _draw([token for token in np.flatnonzero(counts).tolist() if token not in most_used], TOKENS, run, "tokens")
    pictures = [_gallery(run, sample, most_used, "most-used", f"The {len(most_used)} most used tokens")]
    if others:
        ordered = sorted(others, key=lambda token: -run.usage[token])
        pictures.append(_gallery(run, sample, ordered, "random", f"{len(ordered)} random other tokens"))
    return [*pictures, _usage_figure(run)]


def occurrences(sample: Sample, token: int, order: Sequence[int]) -> list[tuple[int, int, int]]:
    """(image, row, column) of patches with this token, images in the given order, each image once before any comes again."""
    rank = {image: place for place, image in enumerate(order)}
    found = sorted(map(tuple, np.argwhere(sample.ids == token).tolist()), key=lambda place: rank[place[0]])
    earlier: dict[int, int] = {}
    turns = []
    for place in found:
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


def _draw(items: Sequence[int], count: int, run: ReportedRun, purpose: str) -> list[int]:
    """`count` of `items`, or all of them, in an order drawn by the run's seed."""
    import torch

    from mapet.runtime.seeding import seeded_generator

    order = torch.randperm(len(items), generator=seeded_generator(run.settings.seed, "report", purpose))
    return [items[index] for index in order[:count].tolist()]


def _usage_figure(run: ReportedRun) -> Picture:
    counts = np.sort(run.usage)[::-1]
    used, total = int((counts > 0).sum()), int(counts.sum())
    perplexity = math.exp(entropy(counts))
    with canvas(3.0) as drawn:
        axes = drawn.figure.subplots()
        axes.fill_between(
            np.arange(used + 1), np.append(counts[:used], counts[used - 1]), step="post", color=BLUE, alpha=0.85, lw=0
        )
        axes.axhline(
            total / len(counts), color=VERMILION, linestyle="--", linewidth=1.1, label=f"equal use: {short(total / len(counts))}"
        )
        axes.set(
            xlim=(0, len(counts)),
            yscale="log",
            xlabel="codes, most used first",
            ylim=(max(0.5, counts[used - 1] / 2), counts[0] * 1.6),
        )
        axes.set_title(f"Uses of every code: {used:,} of {len(counts):,} used, perplexity {perplexity:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        drawn.figure.legend(loc="outside lower left")
    return drawn.picture(
        f"codebook-usage-{slug(run.title)}",
        f"Codes sorted by use, on a logarithmic scale: {used} of {len(counts)} codes are used, the most used one {counts[0]:,} "
        f"times, the perplexity is {perplexity:.0f}.",
        f"{total:,} stored tokens of {len(run.store):,} images. Perplexity is the number of codes that would have the same entropy "
        "if all were used equally.",
    )


def _gallery(run: ReportedRun, sample: Sample, tokens: Sequence[int], name: str, title: str) -> Picture:
    """One row a token, one tile a patch."""
    patch = patch_pixels(sample.images[0], sample.ids.shape[1:])
    reach = 2 if min(patch) <= 4 else 1
    order = _draw(range(len(sample.images)), len(sample.images), run, "images")
    tile = (WIDTH - 0.85) / PATCHES
    with canvas(0.4 + tile * len(tokens)) as drawn:
        axes = drawn.figure.subplots()
        for row, token in enumerate(tokens):
            share = run.usage[token] / run.usage.sum()
            axes.text(-0.12, row + 0.5, f"{token}\n", ha="right", va="center", fontsize=8.5, weight="bold", linespacing=1.1)
            axes.text(-0.12, row + 0.5, f"\n{_percent(share)}", ha="right", va="center", fontsize=8, color=SOFT, linespacing=1.1)
            for column, (image, at_row, at_column) in enumerate(occurrences(sample, token, order)[:PATCHES]):
                pixels = surrounded(sample.images[image], at_row, at_column, patch, reach)
                _draw_tile(axes, row, column, pixels, 2 * reach + 1)
        axes.set(xlim=(0, PATCHES), ylim=(len(tokens), 0), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(title)
    return drawn.picture(
        f"codebook-{name}-{slug(run.title)}",
        f"{title}: each row shows up to {PATCHES} patches that share a token, with their surroundings. Tokens: "
        f"{', '.join(map(str, tokens))}.",
        f"Each row: patches with the same token (its number, its share of all tokens), framed, with {reach} "
        f"{'patches' if reach > 1 else 'patch'} around them; pale blue is outside the image. From {len(sample.images):,} training "
        "images drawn by the seed.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-4 else "<0.01 %"


def _draw_tile(axes: Axes, row: int, column: int, pixels: np.ndarray, span: int) -> None:
    from matplotlib.patches import Rectangle

    half = _GAP / 2
    size = 1 - _GAP
    axes.imshow(pixels, extent=(column + half, column + 1 - half, row + 1 - half, row + half), interpolation="nearest")
    side = size / span
    corner = (column + 0.5 - side / 2, row + 0.5 - side / 2)
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=1.9))
    axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=VERMILION, linewidth=1.1))
    axes.add_patch(Rectangle((column + half, row + half), size, size, fill=False, edgecolor="#c3cad2", linewidth=0.4))
