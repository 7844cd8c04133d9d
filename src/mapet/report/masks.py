"""Who sees what: the visibility masks of an objective, as in Fig. 2 of the MaPeT paper, or what MIM hides.

The matrices are those that the objective computes with; only the rows of context and mask tokens are put above them, which see each
other and nothing else (`models/two_stream.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mapet.errors import NotThereError
from mapet.objectives.mapet import PermutedTokenObjective
from mapet.report.drawing import BLUE, GREEN, INK, ORANGE, SOFT, Picture, canvas, slug
from mapet.report.reading import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLE_SIDE = 3
_KINDS = {"context": BLUE, "mask tokens": ORANGE, "target contents": GREEN}
_UNSEEN = "#f3f5f7"


@dataclass(frozen=True)
class Group:
    """Neighbouring rows or columns.

    Args:
        title: Of the group.
        labels: One for every member.
    """

    title: str
    labels: list[str]


@dataclass(frozen=True)
class Visibility:
    """A matrix to draw.

    Args:
        seen: (rows, columns) int64: 0 = not seen, 1, 2, 3 = a key of the kinds context, mask tokens, target contents is seen.
        rows: Groups of rows, from the top.
        columns: Groups of columns, from the left.
    """

    seen: np.ndarray
    rows: list[Group]
    columns: list[Group]


def mask_figures(run: ReportedRun) -> list[Picture]:
    """What the objective of a run lets the model see.

    Raises:
        NotThereError: The objective has neither two streams nor a mask.
    """
    objective = run.objective
    if not isinstance(objective, PermutedTokenObjective):
        return [_hidden_figure(run)]
    context = min(max(round(EXAMPLE_SIDE**2 * objective.num_context / objective.num_patches), objective.num_context > 0), 8)
    permutation = _permutation(run, EXAMPLE_SIDE**2)
    prefix = min(1, objective.backbone.num_prefix_tokens)
    example = permuted_example(type(objective), permutation, context, prefix)
    description = (
        f"A small example, as computed: {EXAMPLE_SIDE} x {EXAMPLE_SIDE} patches, numbered from 0; "
        f"{_listed(permutation[:context])} are the context, then {_listed(permutation[context:])} are predicted, in this order."
    )
    return [
        _matrix_figure(run, example, "permuted", "In the order of the permutation", description),
        _matrix_figure(
            run,
            in_raster_order(example),
            "raster",
            "The same in raster order, as the paper draws it",
            "The same example with patches in the order of the image.",
        ),
        _matrix_figure(run, of_run(objective), "run", "The masks of this run", _describe(objective)),
    ]


def permuted_example(objective: type[PermutedTokenObjective], permutation: Sequence[int], context: int, prefix: int) -> Visibility:
    """The visibility of an objective for one permutation of a few patches.

    Args:
        objective: MaPeT, PIM or one like them.
        permutation: Patches in the order in which they are visited.
        context: How many of them are context.
        prefix: 1 with a class token, 0 without.
    """
    targets = [str(patch) for patch in permutation[context:]]
    first = ["CLS"] * prefix + [str(patch) for patch in permutation[:context]]
    masks = targets if objective.mask_tokens_are_seen else []
    visible = objective.visibility(len(first) + len(masks), len(targets)).numpy()
    return _assemble(visible, first, masks, targets)


def of_run(objective: PermutedTokenObjective) -> Visibility:
    """The visibility that a run computes with, without labels of single rows."""
    prefix, targets = objective.backbone.num_prefix_tokens, [""] * objective.num_targets
    masks = targets if objective.mask_tokens_are_seen else []
    return _assemble(objective.visible.numpy(), [""] * (prefix + objective.num_context), masks, targets)


def in_raster_order(example: Visibility) -> Visibility:
    """The same rows and columns, contents, mask tokens and queries each in the order of the image."""
    rows, row_order = _raster_groups(example.rows)
    columns, column_order = _raster_groups(example.columns)
    return Visibility(example.seen[np.ix_(row_order, column_order)], rows, columns)


def _assemble(visible: np.ndarray, context: list[str], masks: list[str], targets: list[str]) -> Visibility:
    """Puts the rows of context and mask tokens above the objective's matrix, and colours keys by their kind."""
    prefix_length = len(context) + len(masks)
    prefix = np.tile(np.arange(visible.shape[1]) < prefix_length, (prefix_length, 1))
    kinds = np.repeat([1, 2, 3], [len(context), len(masks), len(targets)])
    columns = [Group("context", context), Group("mask tokens", masks), Group("target contents", targets)]
    columns = [group for group in columns if group.labels]
    queries = Group("queries", targets[2 * len(targets) - len(visible) :])  # of all targets, or of the last that are predicted
    return Visibility(np.concatenate([prefix, visible]) * kinds, [*columns, queries], columns)


def _raster_groups(groups: list[Group]) -> tuple[list[Group], list[int]]:
    """Context and target contents merged, every group sorted; and where its members were."""
    starts = np.cumsum([0, *(len(group.labels) for group in groups)])
    places = {
        group.title: list(zip(group.labels, range(start, 10**6), strict=False))
        for group, start in zip(groups, starts, strict=False)
    }
    merged = {"contents": places.pop("context") + places.pop("target contents"), **places}
    ordered = {
        title: sorted(members, key=lambda member: -1 if member[0] == "CLS" else int(member[0])) for title, members in merged.items()
    }
    return (
        [Group(title, [label for label, _ in members]) for title, members in ordered.items()],
        [place for members in ordered.values() for _, place in members],
    )


def _permutation(run: ReportedRun, patches: int) -> list[int]:
    import torch

    from mapet.runtime.seeding import seeded_generator

    return torch.randperm(patches, generator=seeded_generator(run.settings.seed, "report", "permutation")).tolist()


def _matrix_figure(run: ReportedRun, visibility: Visibility, name: str, title: str, caption: str) -> Picture:
    rows, columns = visibility.seen.shape
    labelled = any(group.labels[0] for group in visibility.columns)
    with canvas(min(6.2, 0.95 + (0.232 if labelled else 3.6 / columns) * rows)) as drawn:
        axes = drawn.figure.subplots()
        _draw_matrix(axes, visibility, labelled)
        _title(drawn.figure, title)
        seen = {kind: color for place, (kind, color) in enumerate(_KINDS.items(), 1) if (visibility.seen == place).any()}
        _legend(drawn.figure, {**seen, "not seen": _UNSEEN})
    return drawn.picture(
        f"masks-{name}-{slug(run.title)}",
        f"Visibility matrix of {run.objective_title}, {rows} rows (queries of attention), {columns} columns (keys). {title}. "
        "Context and mask tokens see each other; contents and queries see what comes before them in the permutation.",
        f"{caption} Rows attend to columns; nothing attends to a query.",
    )


def _draw_matrix(axes: Axes, visibility: Visibility, labelled: bool) -> None:
    from matplotlib.colors import ListedColormap

    rows, columns = visibility.seen.shape
    palette = ListedColormap([_UNSEEN, *_KINDS.values()])
    axes.imshow(visibility.seen, cmap=palette, vmin=0, vmax=3, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
    if labelled:
        axes.hlines(range(rows + 1), 0, columns, color="white", linewidth=0.8)
        axes.vlines(range(columns + 1), 0, rows, color="white", linewidth=0.8)
    _label_groups(axes, visibility.rows, labelled, vertical=True)
    _label_groups(axes, visibility.columns, labelled, vertical=False)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7.5, pad=2, top=False, labeltop=labelled, bottom=False, labelbottom=False)


def _label_groups(axes: Axes, groups: list[Group], labelled: bool, vertical: bool) -> None:
    labels = [label for group in groups for label in group.labels]
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_ticks(np.arange(len(labels)) + 0.5 if labelled else [], labels if labelled else [])
    if labelled and not vertical:
        for tick in axes.get_xticklabels():
            tick.set_rotation(90 if tick.get_text() == "CLS" else 0)
    start = 0
    for group in groups:
        end = start + len(group.labels)
        if vertical:
            axes.annotate(
                group.title.replace(" ", "\n"), (0, (start + end) / 2), xycoords="data", xytext=(-30 if labelled else -8, 0),
                textcoords="offset points", ha="right", va="center", fontsize=8.5, color=INK,
            )  # fmt: skip
        if start:
            draw = axes.axhline if vertical else axes.axvline
            draw(start, color=INK, linewidth=1.0)
        start = end


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.012, ha="left", fontsize=9.5, weight="bold")


def _legend(figure: Figure, colors: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, edgecolor=SOFT, linewidth=0.5, label=label) for label, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=4, handlelength=1, handleheight=1, columnspacing=1.2)


def _hidden_figure(run: ReportedRun) -> Picture:
    """What an objective with a mask hides of six images."""
    import torch

    from mapet.data.batch import Batch
    from mapet.models.backbone import grid_size
    from mapet.runtime.seeding import seeded_generator

    objective, count = run.objective, 6
    grid = grid_size(objective.backbone)
    batch = Batch(torch.zeros(count, 3, run.settings.image_size, run.settings.image_size))
    corruption = objective.corrupt(batch, seeded_generator(run.settings.seed, "report", "corruption"))
    mask = getattr(corruption, "mask", None)
    if mask is None:
        raise NotThereError(
            f"The objective '{run.settings.objective.name}' has neither visibility masks nor a mask of hidden patches."
        )
    with canvas(3.7) as drawn:
        for axes, hidden in zip(drawn.figure.subplots(2, 3).flat, mask.view(count, *grid).numpy(), strict=True):
            _draw_hidden(axes, hidden)
        _title(drawn.figure, "Six draws of what is hidden")
        _legend(drawn.figure, {"visible": BLUE, "hidden: mask token, its visual token is predicted": ORANGE})
    hidden = int(mask[0].sum())
    return drawn.picture(
        f"masks-{slug(run.title)}",
        f"Six random masks over the {grid[0]} x {grid[1]} patches; {hidden} of {mask.shape[1]} are hidden in the first.",
        f"{hidden} of {mask.shape[1]} patches are replaced by the mask token, at random places drawn anew for every image and "
        "step. There is one stream, in which every position sees every other one, mask tokens included.",
    )


def _draw_hidden(axes: Axes, hidden: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    rows, columns = hidden.shape
    palette = ListedColormap([BLUE, ORANGE])
    axes.imshow(hidden, cmap=palette, vmin=0, vmax=1, extent=(0, columns, rows, 0), interpolation="nearest")
    width = 0.8 if max(rows, columns) <= 20 else 0.3
    axes.hlines(range(rows + 1), 0, columns, color="white", linewidth=width)
    axes.vlines(range(columns + 1), 0, rows, color="white", linewidth=width)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _describe(objective: PermutedTokenObjective) -> str:
    prefix = objective.backbone.num_prefix_tokens
    return (
        f"The matrix that this run computes with: {prefix} prefix token{'s' * (prefix != 1)}, {objective.num_context} context "
        f"patches, {objective.num_targets} targets. In permuted order it is the same for every image, step, layer and head."
    )


def _listed(patches: Sequence[int]) -> str:
    return ", ".join(map(str, patches)) or "none"
