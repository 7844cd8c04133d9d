"""What an objective hides of an image and what it predicts, drawn from a corruption as in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mapet.data.batch import Batch
from mapet.models.backbone import grid_size
from mapet.objectives.base import Objective, TokenObjective
from mapet.objectives.mapet import PermutationCorruption
from mapet.objectives.masking import MaskCorruption
from mapet.objectives.patch_pixels import area_resize, unpatchify
from mapet.objectives.recover import Degradation, Recover
from mapet.report.drawing import INK, VERMILION, Picture, canvas
from mapet.runtime.seeding import seeded_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIDDEN = 0.88  # grey of what is not seen
DRAWS = 2


@dataclass(frozen=True)
class _Panel:
    """One picture of a row.

    Args:
        title: Above it.
        pixels: (H, W, 3) in [0, 1].
        marked: Patches to frame, with what is written on them.
    """

    title: str
    pixels: np.ndarray
    marked: dict[int, str]


def objective_figure(name: str, objective: Objective[Any], image: Tensor, seed: int = 0) -> Picture:
    """Rows of panels: the image, what the backbone sees of it, what is predicted; one row for every draw.

    Args:
        name: Of the objective.
        objective: On a backbone of any size.
        image: (3, view_size, view_size) in [0, 1], of the objective's `view_size`.
        seed: Of the draws.
    """
    rows = [_panels(objective, image, seeded_generator(seed, "figure", draw)) for draw in range(DRAWS)]
    grid = grid_size(objective.backbone)
    with canvas(0.25 + 1.72 * DRAWS) as drawn:
        axes = drawn.figure.subplots(DRAWS, 3, squeeze=False)
        for number, panels in enumerate(rows):
            for place, panel in zip(axes[number], panels, strict=True):
                _draw(place, panel, grid)
                place.set_title(panel.title if number == 0 else "", fontsize=8.5)
    titles = ", ".join(panel.title for panel in rows[0])
    return drawn.picture(f"objective-{name}", f"{name}: {titles}, for {DRAWS} draws.", objective.summary)


def _panels(objective: Objective[Any], image: Tensor, generator: torch.Generator) -> list[_Panel]:
    images = image.unsqueeze(0)
    batch = Batch((images - _mean(objective)) / _std(objective))
    corruption = objective.corrupt(batch, generator)
    whole = _Panel("the image", _as_array(images), {})
    if isinstance(corruption, PermutationCorruption):
        return [whole, *_permuted(objective, images, corruption)]
    if isinstance(objective, Recover):
        return [whole, *_recovered(objective, batch, corruption)]
    if isinstance(corruption, MaskCorruption):
        return [whole, *_masked(objective, images, corruption.mask[0])]
    return [whole, _Panel("what is seen", _as_array(images), {}), _Panel("what is predicted", _as_array(images), {})]


def _permuted(objective: Objective[Any], images: Tensor, corruption: PermutationCorruption) -> list[_Panel]:
    """The context alone, and the targets with their turns."""
    context = corruption.permutation[0, : objective.num_context]  # type: ignore[attr-defined]
    targets = corruption.permutation[0, objective.num_context :].tolist()  # type: ignore[attr-defined]
    hidden = torch.ones(objective.num_patches, dtype=torch.bool)
    hidden[context] = False
    step = max(1, len(targets) // 12)
    turns = {patch: str(turn + 1) for turn, patch in enumerate(targets) if turn % step == 0}
    seen = _without(objective, images, hidden)
    return [
        _Panel("the context", seen, {}),
        _Panel("targets, some turns", _without(objective, images, ~hidden), turns),
    ]


def _masked(objective: Objective[Any], images: Tensor, mask: Tensor) -> list[_Panel]:
    target = "tokens" if isinstance(objective, TokenObjective) else "these patches"
    return [
        _Panel("what is seen", _without(objective, images, mask), {}),
        _Panel(f"predicted: {target}", _without(objective, images, ~mask), {}),
    ]


def _recovered(objective: Recover[Any], batch: Batch, corruption: Degradation) -> list[_Panel]:
    """The degraded image, and the pixels that the decoder stands for; where both lie on each other, of masked patches alone."""
    degraded = objective.pixels(objective.degrade(batch.images, corruption)).clamp(0, 1)
    if degraded.shape[1] == 1:
        degraded = degraded.expand(-1, 3, -1, -1)
    hidden = torch.zeros(objective.num_patches, dtype=torch.bool) if corruption.mask is None else corruption.mask[0]
    targets = area_resize(objective.pixels(batch.images), objective.image_size)
    visible = torch.zeros_like(hidden)
    if corruption.mask is not None and objective.view_size == objective.image_size:
        visible = ~hidden
    return [
        _Panel("what is seen", _without(objective, degraded, hidden), {}),
        _Panel("predicted: these pixels", _without(objective, targets, visible), {}),
    ]


def _without(objective: Objective[Any], images: Tensor, hidden: Tensor) -> np.ndarray:
    """The image with `hidden` patches (N_p,) greyed."""
    rows, columns = grid_size(objective.backbone)
    height, width = images.shape[-2] // rows, images.shape[-1] // columns
    visible = ~hidden.view(1, -1, 1).expand(1, -1, height * width * 3)
    visible_pixels = unpatchify(visible.float(), (rows, columns), height).bool()
    return _as_array(images.where(visible_pixels, HIDDEN))


def _draw(axes: Axes, panel: _Panel, grid: tuple[int, int]) -> None:
    height, width = panel.pixels.shape[0] / grid[0], panel.pixels.shape[1] / grid[1]
    axes.imshow(panel.pixels, interpolation="nearest")
    for patch, label in panel.marked.items():
        row, column = divmod(patch, grid[1])
        place = ((column + 0.5) * width - 0.5, (row + 0.5) * height - 0.5)
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": VERMILION, "linewidth": 0.6}
        axes.text(*place, label, ha="center", va="center", fontsize=4.6, color=INK, bbox=box)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _as_array(images: Tensor) -> np.ndarray:
    return images[0].permute(1, 2, 0).clamp(0, 1).numpy()


def _mean(objective: Objective[Any]) -> Tensor:
    return getattr(objective, "mean", torch.zeros(3, 1, 1))


def _std(objective: Objective[Any]) -> Tensor:
    return getattr(objective, "std", torch.ones(3, 1, 1))
