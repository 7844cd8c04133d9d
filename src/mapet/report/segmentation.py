"""What a segmentation found: the IoU of every class, and some test images with truth and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.data.decode import image_size
from mapet.data.tree import read_file
from mapet.errors import NotThereError, UnreadableImageError
from mapet.evaluation.protocol import Result, data_digits
from mapet.report.drawing import BLUE, INK, SOFT, Picture, canvas, slug
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_OVERLAYS = 4
MOST_CLASSES = 30


def segmentation_figures(run: ReportedRun) -> list[Picture]:
    """Bars and pictures of every segmentation that is kept with a run.

    Raises:
        NotThereError: There is none.
    """
    results = [result for result in run.results if result.protocol.get("name") == "segment"]
    if not results:
        raise NotThereError(f"No segmentation is kept with this run; `mapet evaluate segment {run.run.path} FOLDER` makes one.")
    return [picture for result in results for picture in [_bars(run, result), *_overlays(run, result)]]


def _bars(run: ReportedRun, result: Result) -> Picture:
    """IoU of the classes with the most pixels, best first."""
    details: dict[str, Any] = result.details
    pixels = details["test_pixels"]
    iou = {name: value for name, value in details["iou"].items() if value is not None}
    names = sorted(sorted(iou, key=lambda name: -pixels[name])[:MOST_CLASSES], key=lambda name: -iou[name])
    with canvas(0.9 + 0.2 * len(names)) as drawn:
        _draw(drawn.figure.subplots(), {name: iou[name] for name in names}, result.value)
    constant = details["most_frequent_class"]
    iou_in_words = ", ".join(f"{name} {iou[name]:.1%}" for name in names)
    remark = f"The {len(names)} most frequent of {len(iou)} classes. " if len(names) < len(iou) else ""
    return drawn.picture(
        f"segmentation-{slug(run.title)}-{result.protocol_hash}-{data_digits(result.data)}",
        f"Bars of the IoU of every class on {result.data}: {iou_in_words}. Their mean is {result.value:.1%}.",
        f"{remark}IoU on {result.test_images:,} test images of {result.data} after training on {result.train_images:,}; protocol "
        f"{result.protocol_hash} ({result.preset or 'own settings'}). The line is the mean of all classes. Predicting "
        f"'{constant['name']}' everywhere would give {constant['miou']:.1%}.",
    )


def _draw(axes: Axes, iou: dict[str, float], mean: float) -> None:
    boxed = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.barh(range(len(iou)), [*iou.values()], height=0.7, color=BLUE)
    for place, value in enumerate(iou.values()):
        axes.text(value + 0.01, place, f"{100 * value:.1f}", va="center", fontsize=7.5, bbox=boxed)
    axes.axvline(mean, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    axes.set_yticks(range(len(iou)), [*iou])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set(xlim=(0, 1.0), ylim=(len(iou) - 0.4, -0.6))
    axes.set_title(f"IoU by class, mean {100 * mean:.1f} %")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelcolor=SOFT)


def _overlays(run: ReportedRun, result: Result) -> list[Picture]:
    """The first pictures that the protocol kept beside its result."""
    folder = result.details.get("overlays")
    place = (run.run.evaluations / str(folder)).resolve()
    is_inside = bool(folder) and place.is_relative_to(run.run.evaluations.resolve())  # a file shows no pictures from elsewhere
    files = sorted(path for path in place.glob("*.png") if path.is_file() and not path.is_symlink()) if is_inside else []
    return [_overlay(run, path) for path in files[:SHOWN_OVERLAYS]]


def _overlay(run: ReportedRun, path: Path) -> Picture:
    try:
        png = read_file(path)
        width, height = image_size(png)
    except UnreadableImageError as error:
        raise NotThereError(f"The picture {path} cannot be shown: {error}.") from None
    return Picture(
        f"overlay-{slug(run.title)}-{slug(path.parent.parent.name)}-{slug(path.stem)}",
        png,
        width,
        height,
        f"Test image {path.stem}, its true classes and the predicted ones, side by side, with a legend of the classes.",
        f"{path.stem}: image, truth, prediction. Black is ignored. More in {path.parent}.",
    )
