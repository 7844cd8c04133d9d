"""One image: its visual tokens, what the model saw of it, and how sure it was of every hidden token."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mapet.errors import NotThereError
from mapet.report.drawing import ABSENT, INK, SOFT, Picture, canvas, slug
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKED_UP_TO = 20
_NUMBERED_UP_TO = 8


@dataclass(frozen=True)
class Prediction:
    """What an objective makes of one image.

    Args:
        image: (H, W, 3) uint8.
        name: Of the image.
        tokens: (gh, gw) int64, the stored tokens.
        hidden: (gh, gw) bool, patches whose token is predicted.
        probability: (gh, gw) float64 that the model gives the stored token; NaN where it is not predicted.
        right: (gh, gw) bool, where the stored token is the likeliest.
        step: Of the checkpoint.
        vocab_size: Number of tokens that the model chooses from.
    """

    image: np.ndarray
    name: str
    tokens: np.ndarray
    hidden: np.ndarray
    probability: np.ndarray
    right: np.ndarray
    step: int
    vocab_size: int


def predict(run: ReportedRun) -> Prediction:
    """The newest checkpoint's prediction of the first sampled image, with what is hidden drawn from the run's seed.

    Raises:
        NotThereError: There is no checkpoint, or the objective predicts no tokens.
        MapetError: Images, tokens or settings are not what they were.
    """
    import torch

    from mapet.data.batch import Batch
    from mapet.data.views import normalise
    from mapet.runtime.seeding import seeded_generator

    step = run.load_newest_checkpoint()
    objective, sample, settings = run.objective, run.sample, run.settings
    image = torch.from_numpy(sample.images[:1].copy()).permute(0, 3, 1, 2)
    ids = torch.from_numpy(sample.ids[:1]).flatten(1)
    batch = Batch(normalise(image, settings.training.mean, settings.training.std), ids)
    with torch.inference_mode():
        corruption = objective.corrupt(batch, seeded_generator(settings.seed, "report", "corruption"))
        output = objective(batch, corruption, return_logits=True)
    if output.logits is None or output.target_positions is None:
        raise NotThereError(f"The objective '{settings.objective.name}' gives no logits of visual tokens.")
    predicted = output.target_positions[0] >= 0
    positions = output.target_positions[0, predicted].numpy()
    logits = output.logits[0, predicted].double()
    stored = ids[0, output.target_positions[0, predicted]]
    grid = sample.ids.shape[1:]
    hidden, right, probability = np.zeros(grid, bool), np.zeros(grid, bool), np.full(grid, np.nan)
    hidden.flat[positions] = True
    right.flat[positions] = (logits.argmax(dim=1) == stored).numpy()
    probability.flat[positions] = logits.softmax(dim=1).gather(1, stored.unsqueeze(1)).squeeze(1).numpy()
    return Prediction(sample.images[0], sample.names[0], sample.ids[0], hidden, probability, right, step, logits.shape[1])


def prediction_figure(run: ReportedRun) -> Picture:
    """Four panels: the image, what is visible, the tokens, the probability of every hidden token."""
    prediction = predict(run)
    hidden, right = int(prediction.hidden.sum()), int(prediction.right.sum())
    drawn_from = "a training image" if run.sample_is_of_training else "an image of its data"
    with canvas(5.75) as drawn:
        (image, visible), (tokens, confidence), (below, scale) = drawn.figure.subplots(3, 2, height_ratios=[1, 1, 0.24])
        _draw_image(image, prediction, covered=False)
        _draw_image(visible, prediction, covered=True)
        _draw_tokens(tokens, prediction.tokens)
        _draw_confidence(confidence, scale, prediction)
        _explain_marks(below)
        image.set_title("Image and patches")
        visible.set_title(f"Visible: {prediction.hidden.size - hidden} of {prediction.hidden.size}")
        tokens.set_title(f"Tokens: {len(np.unique(prediction.tokens))} different")
        confidence.set_title("Probability of the true token")
    return drawn.picture(
        f"prediction-{slug(run.title)}",
        f"An image with its patch grid, the {prediction.hidden.size - hidden} patches that are visible, the token of every "
        f"patch, and the probability that the model gives the true token of each of {hidden} hidden patches: "
        f"{right} are predicted rightly, the median probability is {np.nanmedian(prediction.probability):.2g}.",
        f"{prediction.name}, {drawn_from} drawn by the seed, not chosen; {run.objective_title} after {prediction.step:,} steps. "
        f"Patches with the same token have the same colour. Of {hidden} hidden patches {right} have the true token as first choice "
        f"({right / max(1, hidden):.0%}); median probability of the true token "
        f"{np.nanmedian(prediction.probability):.2g} (a guess: 1/{prediction.vocab_size}). {_ORDER.get(run.objective_title, '')}",
    )


def patch_pixels(image: np.ndarray, grid: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a patch."""
    return image.shape[0] // grid[0], image.shape[1] // grid[1]


def token_color(token: int) -> tuple[float, float, float]:
    """A colour that is always the same for a token; neighbouring numbers are far apart in hue, and differ in lightness."""
    return colorsys.hls_to_rgb(token * 0.618034 % 1, (0.42, 0.62, 0.80)[token % 3], (0.65, 0.6, 0.75)[token % 3])


def _draw_image(axes: Axes, prediction: Prediction, covered: bool) -> None:
    rows, columns = prediction.tokens.shape
    image = prediction.image.copy()
    if covered:
        height, width = patch_pixels(image, prediction.tokens.shape)
        image[np.kron(prediction.hidden, np.ones((height, width), bool))] = ABSENT
    axes.imshow(image, extent=(0, columns, rows, 0), interpolation="nearest")
    _grid(axes, rows, columns, "white")


def _draw_tokens(axes: Axes, tokens: np.ndarray) -> None:
    rows, columns = tokens.shape
    colors = np.array([token_color(int(token)) for token in tokens.flat]).reshape(rows, columns, 3)
    axes.imshow(colors, extent=(0, columns, rows, 0), interpolation="nearest")
    _grid(axes, rows, columns, "white")
    if max(rows, columns) > _NUMBERED_UP_TO:
        return
    for (row, column), token in np.ndenumerate(tokens):
        _centred(axes, row, column, str(token), _contrast(colors[row, column]), fontsize=7.5)


def _draw_confidence(axes: Axes, below: Axes, prediction: Prediction) -> None:
    import matplotlib
    from matplotlib.colors import LogNorm

    rows, columns = prediction.tokens.shape
    scale = matplotlib.colormaps["cividis"]
    values = np.ma.masked_invalid(prediction.probability)
    axes.set_facecolor("#ffffff")
    norm = LogNorm(1 / prediction.vocab_size, 1, clip=True)
    drawn = axes.imshow(values, cmap=scale, norm=norm, extent=(0, columns, rows, 0), interpolation="nearest")
    _grid(axes, rows, columns, "#e6e9ec")
    below.set_axis_off()
    inside = below.inset_axes((0.03, 0.72, 0.94, 0.24))
    bar = axes.figure.colorbar(drawn, cax=inside, orientation="horizontal")
    decades = [10.0**-power for power in (4, 3, 2, 1, 0) if 10.0**-power * prediction.vocab_size > 2.5]
    bar.set_ticks(
        [1 / prediction.vocab_size, *decades],
        labels=[f"1/{prediction.vocab_size}", *(f"{value:g}" for value in decades)],
        fontsize=8,
    )
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)  # type: ignore[operator]
    if max(rows, columns) > _MARKED_UP_TO:
        return
    size = 130 / max(rows, columns)
    for marks, marker in ((prediction.right, "o"), (prediction.hidden & ~prediction.right, "x")):
        at_rows, at_columns = np.nonzero(marks)
        inks = [
            _contrast(scale(norm(prediction.probability[row, column]))[:3]) for row, column in zip(at_rows, at_columns, strict=True)
        ]
        width = 0.0 if marker == "o" else 1.1
        axes.scatter(at_columns + 0.5, at_rows + 0.5, s=size, marker=marker, c=inks or None, linewidths=width)


def _explain_marks(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    marks = {"o": "first choice is the true token", "x": "it is another", "s": "visible, not predicted"}
    handles = [Line2D([], [], linestyle="", marker=mark, markersize=5, color=INK, label=label) for mark, label in marks.items()]
    handles[-1].set(markerfacecolor="white", markeredgecolor=SOFT)
    axes.set_axis_off()
    axes.legend(handles=handles, loc="upper left", borderaxespad=0, borderpad=0, handletextpad=0.2, labelspacing=0.35)


def _grid(axes: Axes, rows: int, columns: int, color: str) -> None:
    style: dict[str, Any] = {"color": color, "linewidth": 0.7 if max(rows, columns) <= _MARKED_UP_TO else 0.3}
    for row in range(1, rows):
        axes.axhline(row, **style)
    for column in range(1, columns):
        axes.axvline(column, **style)
    axes.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
    for spine in axes.spines.values():
        spine.set(visible=True, color=SOFT, linewidth=0.7)


def _centred(axes: Axes, row: int, column: int, content: str, color: str, fontsize: float) -> None:
    axes.text(column + 0.5, row + 0.5, content, ha="center", va="center_baseline", color=color, fontsize=fontsize)


def _contrast(rgb: np.ndarray | tuple[float, ...]) -> str:
    """Ink or white, whichever is easier to read on a colour."""
    return INK if float(np.dot(rgb, (0.299, 0.587, 0.114))) > 0.55 else "white"


_ORDER = {
    "MaPeT": "Hidden patches are predicted in a random order, and later ones also see the contents of those before them.",
    "PIM": "Hidden patches are predicted in a random order, and later ones also see the contents of those before them.",
    "MIM": "All hidden patches are predicted at once, from the visible ones.",
}
