"""What a comparison found: figures of every cell over its seeds, and the paired difference of each to the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mapet.compare.carry_out import is_finished
from mapet.compare.grid import RANDOM, Cell, described
from mapet.compare.manifest import Manifest
from mapet.compare.statistics import Difference, difference_of_figures, holm, paired_difference
from mapet.compare.tasks import Task
from mapet.errors import CheckpointError
from mapet.evaluation.intervals import bootstrap
from mapet.evaluation.outcomes import MEAN_PER_CLASS, SUFFIX, Outcomes, load_outcomes
from mapet.evaluation.protocol import Result
from mapet.evaluation.result_files import read_result
from mapet.evaluation.segmentation.miou import scores_of_pixels


@dataclass(frozen=True)
class Measured:
    """One result: a figure, and what became of every test image."""

    result: Result
    value: float
    keys: np.ndarray
    outcomes: Outcomes


@dataclass(frozen=True)
class Row:
    """A cell by one protocol.

    Args:
        cell: Its title.
        protocol: The title of the protocol with its pool.
        metric: Of the figures.
        values: Seed to figure, 0 to 1; the seeds that are there.
        baseline: The title of the cell that this one is compared with; "" for the random initialisation and the first cell.
        tuned: The settings that the cell chose, in words.
        difference: To the baseline, over the seeds of both; None of the baseline, and where no seed is shared.
        p: That of the difference, adjusted for all differences of the comparison.
    """

    cell: str
    protocol: str
    metric: str
    values: dict[int, float]
    baseline: str = ""
    tuned: str = ""
    difference: Difference | None = None
    p: float | None = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.mean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None of one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def differs(self) -> bool:
        """Whether a difference to the baseline is shown at the level of 5 %, over all comparisons."""
        return self.p is not None and self.p < 0.05


class ComparisonResults:
    """The results that are there; runs that are not finished are left out.

    Args:
        manifest: Of the comparison.
        tasks: What was measured.

    Raises:
        CheckpointError: Two runs differ in something that the grid does not vary, or a run was changed by hand.
    """

    def __init__(self, manifest: Manifest, tasks: Sequence[Task]) -> None:
        self.manifest, self.tasks = manifest, tasks
        grid = manifest.grid
        self.finished = [
            (cell, seed) for cell in grid.cells for seed in range(grid.seeds) if is_finished(manifest, cell, seed, tasks)
        ]
        self._require_equal()

    @property
    def missing(self) -> list[str]:
        """Runs of the grid that are not finished, as titles with seeds."""
        grid = self.manifest.grid
        token_cells = grid.token_cells if any(task.is_of_tokenizers for task in self.tasks) else []
        missing_runs = [(cell, seed) for cell in grid.cells for seed in range(grid.seeds) if (cell, seed) not in self.finished]
        missing_runs += [
            (cell, seed)
            for cell in token_cells
            for seed in range(grid.seeds)
            if not is_finished(self.manifest, cell, seed, self.tasks)
        ]
        return [f"{cell.title(grid)}, seed {seed}" for cell, seed in missing_runs]

    @cached_property
    def rows(self) -> list[Row]:
        """Of every protocol the random initialisation, then every cell of the grid that has a result."""
        rows: list[Row] = []
        grid = self.manifest.grid
        for task in self.tasks:
            measured = {cell: self._measured(cell, task) for cell in (grid.token_cells if task.is_of_tokenizers else grid.cells)}
            rows += self._random(task)
            rows += [self._row(cell, task, measured) for cell, cell_results in measured.items() if cell_results]
        return _adjusted(rows)

    def _row(self, cell: Cell, task: Task, measured: dict[Cell, dict[int, Measured]]) -> Row:
        grid, cell_results = self.manifest.grid, measured[cell]
        metric = next(iter(cell_results.values())).result.metric
        values = {seed: each.value for seed, each in cell_results.items()}
        trial_settings = self.manifest.chosen_trials.get(cell, cell).varied[len(cell.varied) :]
        row = Row(cell.title(grid), task.title, metric, values, tuned=described(trial_settings))
        baseline = grid.baseline(cell)
        if baseline == cell:
            return row
        seeds = sorted(cell_results.keys() & measured[baseline].keys())
        before, after = ([seed_results[seed] for seed in seeds] for seed_results in (measured[baseline], cell_results))
        return replace(row, baseline=baseline.title(grid), difference=compared(before, after, metric) if seeds else None)

    def _measured(self, cell: Cell, task: Task) -> dict[int, Measured]:
        seeds = range(self.manifest.grid.seeds)
        return {seed: read for seed in seeds if self._is_finished(cell, seed) and (read := self._read(cell, seed, task))}

    def _is_finished(self, cell: Cell, seed: int) -> bool:
        return not cell.objective or (cell, seed) in self.finished

    def _read(self, cell: Cell, seed: int, task: Task) -> Measured | None:
        path = task.result_file(self.manifest, cell, seed)
        if path is None:
            return None
        result = read_result(path)
        return Measured(result, result.value, *load_outcomes(path.with_name(f"{path.stem}{SUFFIX}")))

    def _random(self, task: Task) -> list[Row]:
        """The random initialisation, over the seeds of which it was evaluated."""
        random_values: dict[int, float] = {}
        metric = task.protocol.metric
        for cell, seed in self.finished:
            measured = None if task.is_of_tokenizers else self._read(cell, seed, task)
            if measured and measured.result.random_value is not None:
                random_values.setdefault(seed, measured.result.random_value)
                metric = measured.result.metric
        return [Row(RANDOM, task.title, metric, random_values)] if random_values else []

    def _require_equal(self) -> None:
        """Refuses runs that differ in more than the grid varies: they never share a table."""
        seen: dict[str, str] = {}
        for cell, seed in self.finished:
            run = self.manifest.run(cell, seed)
            seen.setdefault(self.manifest.common_hash(run.read_config()), str(run.path))
        if len(seen) > 1:
            one, other = [*seen.values()][:2]
            raise CheckpointError(
                f"{one} and {other} were trained on other images, in another order, or with settings that this comparison does not "
                "vary. They cannot share a table. Remove one of them, and run the command again."
            )


def compared(before: Sequence[Measured], after: Sequence[Measured], metric: str) -> Difference | None:
    """The difference of `after` to `before`, seed by seed on the same test images; None where they share no image.

    Args:
        before: Of the baseline, one a seed.
        after: Of the same seeds.
        metric: The figure.
    """
    shared = set.intersection(*(set(each.keys.tolist()) for each in (*before, *after)))
    if not shared:
        return None
    first, second = ([_only(each, shared) for each in side] for side in (before, after))
    if metric in first[0].values:
        both = zip(first, second, strict=True)
        return paired_difference(np.stack([(new.values[metric] - old.values[metric]).numpy() for old, new in both]))
    if metric == MEAN_PER_CLASS and first[0].labels is not None:
        labels = first[0].labels.numpy()
        weights = len(labels) / (np.bincount(labels)[labels] * len(np.unique(labels)))
        both = zip(first, second, strict=True)
        return paired_difference(np.stack([(new.values["top1"] - old.values["top1"]).numpy() * weights for old, new in both]))
    return _of_pixels(first, second, metric)


def _of_pixels(first: Sequence[Outcomes], second: Sequence[Outcomes], metric: str) -> Difference | None:
    """Of a figure of segmentation."""
    import torch

    pixels = [[each.pixels for each in side] for side in (first, second)]
    if any(part is None for side in pixels for part in side):
        return None
    flat = [[part.reshape(len(part), -1).double().numpy() for part in side if part is not None] for side in pixels]

    def differences(drawn: np.ndarray) -> list[float]:
        figures = [[scores_of_pixels(torch.from_numpy(drawn @ part).view(3, -1)).metrics[metric] for part in side] for side in flat]
        return [new - old for old, new in zip(*figures, strict=True)]

    images = len(flat[0][0])
    ((low, high),) = bootstrap(images, lambda drawn: [float(np.mean(differences(drawn)))])
    return difference_of_figures(differences(np.ones(images)), ((high - low) / (2 * 1.959964)) ** 2)


def _only(measured: Measured, keys: set[bytes]) -> Outcomes:
    """The outcomes of the images `keys`, each once, in the order of the keys."""
    import torch

    order = {key: row for row, key in reversed([*enumerate(measured.keys.tolist())])}
    index = torch.tensor([order[key] for key in sorted(keys)])
    outcomes = measured.outcomes
    labels, pixels = (None if part is None else part[index] for part in (outcomes.labels, outcomes.pixels))
    return Outcomes({name: value[index] for name, value in outcomes.values.items()}, labels, pixels)


def _adjusted(rows: list[Row]) -> list[Row]:
    """With p-values adjusted by Holm's method for all differences of the comparison."""
    tested = [(number, row.difference.p) for number, row in enumerate(rows) if row.difference is not None]
    adjusted = dict(zip([number for number, _ in tested], holm([p for _, p in tested]), strict=True))
    return [replace(row, p=adjusted.get(number)) for number, row in enumerate(rows)]
