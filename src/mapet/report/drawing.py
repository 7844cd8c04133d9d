"""What all figures share: size, type, colours that colour-blind readers can distinguish, and conversion to PNG.

Figures are 5 inches wide with text of 7.5 to 10 points, so that they stay legible on a telephone, where 5 inches become one screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 5.0
DPI = 200
INK, SOFT, LINE = "#1f2328", "#59636e", "#d8dee4"
ABSENT = (214, 226, 238)  # pixels that are not there; rarely a colour of images
# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
# The same and two of Tol's, all dark enough for white text.
RUN_COLORS = (BLUE, VERMILION, GREEN, "#882255", "#332288", "#6b6100")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 9,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "mapet",  # the same figure is the same file
}


@dataclass(frozen=True)
class Picture:
    """A finished figure.

    Args:
        name: Of its file, without suffix.
        png: The file.
        width: In pixels.
        height: In pixels.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
        svg: The same as vectors; empty where it was not wanted.
    """

    name: str
    png: bytes
    width: int
    height: int
    alt: str
    caption: str
    svg: bytes = b""


class Canvas:
    """An empty figure and, after the block that draws on it, its PNG."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.png = b""
        self.svg = b""

    def picture(self, name: str, alt: str, caption: str) -> Picture:
        """The figure as drawn."""
        width, height = (round(inches * DPI) for inches in self.figure.get_size_inches())
        return Picture(name, self.png, width, height, alt, caption, self.svg)


@contextmanager
def canvas(height: float, vectors: bool = False) -> Iterator[Canvas]:
    """A figure of `WIDTH` x `height` inches in the style of the report, without any global state of pyplot.

    Args:
        height: In inches.
        vectors: Whether it is kept as SVG too.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn = Canvas(Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white"))
        yield drawn
        drawn.png, drawn.svg = _rendered(drawn.figure, vectors)


def _rendered(figure: Figure, vectors: bool) -> tuple[bytes, bytes]:
    """The PNG, and the SVG where it is wanted."""
    _lay_out(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    if vectors:
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _lay_out(figure: Figure) -> None:
    """Places everything, for `DPI`; savefig with a layout engine would draw the whole figure once more for that."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    engine, dpi = figure.get_layout_engine(), figure.get_dpi()
    assert engine is not None
    figure.set_dpi(DPI)
    engine.execute(figure)
    figure.set_dpi(dpi)
    figure.set_layout_engine(None)


def slug(name: str) -> str:
    """A name that is safe as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name).strip("-") or "run"


def short(number: float) -> str:
    """A count as people write it on an axis: 950, 12k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
