"""Pictures of what was predicted: image, truth and prediction side by side, and a legend of the classes in them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, GAP, LINE, SWATCH = 420, 6, 20, 12
Color = tuple[int, int, int]
_OPACITY = 0.65
_IGNORED_COLOR = (0, 0, 0)
# After Tol's palettes, which colour-blind readers can distinguish; classes beyond go round the colour circle.
_PALETTE = (
    (68, 119, 170), (204, 187, 68), (170, 51, 119), (170, 170, 170), (238, 102, 119), (34, 136, 51), (238, 119, 51), (0, 85, 85),
    (51, 34, 136), (136, 34, 85), (0, 153, 136), (153, 153, 51), (170, 170, 221), (221, 204, 119), (255, 170, 187), (102, 17, 0),
)  # fmt: skip


def class_color(number: int) -> Color:
    """RGB of a class; the same in every picture."""
    if number < len(_PALETTE):
        return _PALETTE[number]
    hue = (number * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.15 * (number % 3), 0.95 - 0.2 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image: Image.Image, truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Image, truth and prediction side by side.

    Args:
        image: In mode RGB.
        truth: (H, W) classes; negative where there is none, which is shown in black.
        predicted: (H, W) classes.
        classes: Their names.
    """
    height = max(1, round(WIDTH * image.height / image.width))
    resized = image.resize((WIDTH, height), Image.Resampling.BICUBIC)
    panels = [resized, *(_colored(resized, class_map) for class_map in (truth, predicted))]
    present = sorted({*np.unique(truth[truth >= 0]).tolist(), *np.unique(predicted).tolist()})
    entries = [(_IGNORED_COLOR, "ignored")] * bool((truth < 0).any()) + [
        (class_color(number), classes[int(number)]) for number in present
    ]
    whole_width = 3 * WIDTH + 2 * GAP
    places = _legend_places([name for _, name in entries], whole_width)
    lines = places[-1][1] + 1 if places else 0
    canvas = Image.new("RGB", (whole_width, LINE + height + GAP + lines * LINE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (panel, title) in enumerate(zip(panels, ("image", "truth", "prediction"), strict=True)):
        left = number * (WIDTH + GAP)
        draw.text((left, 2), title, "black", font)
        canvas.paste(panel, (left, LINE))
    for (color, name), (left, line) in zip(entries, places, strict=True):
        top = LINE + height + GAP + line * LINE
        draw.rectangle((left, top + 2, left + SWATCH, top + 2 + SWATCH), fill=color, outline="black")
        draw.text((left + SWATCH + 4, top), name, "black", font)
    return canvas


def _colored(image: Image.Image, classes: np.ndarray) -> Image.Image:
    """The image below the colours of its classes; black where there is none."""
    highest = max(int(classes.max(initial=0)), 0)
    table = np.array([_IGNORED_COLOR, *map(class_color, range(highest + 1))], np.uint8)
    colors = Image.fromarray(table[np.maximum(classes, -1) + 1]).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image, colors, _OPACITY)


def _legend_places(names: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Left end and line of every entry, as many in a line as there is room for."""
    font = ImageFont.load_default(13)
    places, left, line = [], 0, 0
    for name in names:
        needed = SWATCH + 4 + round(font.getlength(name)) + 14
        if left and left + needed > width:
            left, line = 0, line + 1
        places.append((left, line))
        left += needed
    return places
