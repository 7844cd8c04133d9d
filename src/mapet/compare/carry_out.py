"""Carries out a comparison: tokens once for all runs, then every run and its evaluations, in any number of jobs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mapet.compare.grid import Cell
from mapet.compare.manifest import Manifest
from mapet.compare.tasks import Task, tasks_for
from mapet.compare.tokens import tokenizer_of, tokens_of
from mapet.compare.tuning import Tuning
from mapet.config.settings import PretrainSettings
from mapet.data.order import step_batches
from mapet.data.sources import open_source
from mapet.errors import InterruptedRunError, InUseError, MapetError
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.tokens.data import open_tokens
from mapet.objectives.base import Objective
from mapet.pretraining.pretrain import backbone_spec, build_objective, pretrain
from mapet.pretraining.step import TrainingStep
from mapet.runtime.device import choose_device
from mapet.runtime.progress import say

_TIMED_STEPS = 3


def carry_out(
    manifest: Manifest,
    tasks: Sequence[Task],
    tuning: Tuning,
    part: tuple[int, int] = (1, 1),
    after_run: Callable[[], None] = lambda: None,
) -> list[str]:
    """Trains and evaluates what is left, seed by seed, so that a comparison that is stopped has whole seeds.

    Args:
        manifest: Of the comparison, begun.
        tasks: What to measure.
        tuning: Of the same comparison; its trials come first.
        part: (i, n): this job takes every n-th run, from the i-th on; jobs meet in the folder of the comparison.
        after_run: Called after every run.

    Returns:
        A sentence for every run that failed; the others went on.
    """
    grid, failed = manifest.grid, _Failed()
    trials = tuning.trials[part[0] - 1 :: part[1]]
    for number, (cell, trial) in enumerate(trials, 1):
        if trial not in tuning.scores(cell):
            with failed.noted(f"{trial.title(grid)}, trial", f"Trial {number} of {len(trials)}: {trial.title(grid)}."):
                tuning.carry_out(cell, trial)
    token_cells = grid.token_cells if any(task.is_of_tokenizers for task in tasks) else []
    todo = [(cell, seed) for seed in range(grid.seeds) for cell in [*grid.cells, *token_cells]][part[0] - 1 :: part[1]]
    for number, (cell, seed) in enumerate(todo, 1):
        tuning.refresh()
        if is_finished(manifest, cell, seed, tasks):
            continue
        title = f"{cell.title(grid)}, seed {seed}"
        with failed.noted(title, f"Run {number} of {len(todo)}: {title}."):
            remaining = [task for task in tasks_for(cell, tasks) if task.result_file(manifest, cell, seed) is None]
            if cell.objective:
                tuning.require(cell)
                _run(manifest, cell, seed, remaining)
            else:
                _evaluate_tokens(manifest, cell, seed, remaining)
        after_run()
    return failed.sentences


class _Failed:
    """The runs that failed; the others go on."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    @contextmanager
    def noted(self, title: str, line: str) -> Iterator[None]:
        """Does one run; what ends it is noted, unless the user or the scheduler stopped it."""
        say(line)
        try:
            yield
        except InterruptedRunError:
            raise
        except InUseError as error:
            say(f"Left to another job: {error}")
        except MapetError as error:
            self.sentences.append(f"{title}: {error}")
            say(f"This run failed, and the comparison goes on: {error}")


def is_finished(manifest: Manifest, cell: Cell, seed: int, tasks: Sequence[Task]) -> bool:
    """Whether a run has its backbone and all its results; without an objective, whether the tokenizer has its results."""
    is_made = not cell.objective or (manifest.is_tuned(cell) and manifest.run(cell, seed).backbone.is_dir())
    return is_made and all(task.result_file(manifest, cell, seed) is not None for task in tasks_for(cell, tasks))


def seconds_per_step(manifest: Manifest, cell: Cell) -> float:
    """The median of a few optimizer steps of a cell on images of noise, without the time that loading takes."""
    settings = manifest.settings(cell, 0)
    device, size = choose_device(settings.mechanics.device), settings.training.batch_size
    objective = _objective(settings).to(device)
    step = TrainingStep(objective, settings, device)
    images = torch.randint(0, 256, (size, 3, objective.view_size, objective.view_size), dtype=torch.uint8, device=device)
    tokens = torch.randint(0, settings.tokenizer.vocab_size, (size, objective.num_patches), device=device)
    durations = []
    for number in range(_TIMED_STEPS + 1):
        began = time.perf_counter()
        float(step(images, tokens if "tokens" in objective.needs else None, number, 0.0).loss)
        durations.append(time.perf_counter() - began)
    return statistics.median(durations[1:])  # the first one allocates


def rows_per_step(manifest: Manifest, cell: Cell) -> float:
    """Rows of all images of a step that pass the backbone's blocks."""
    settings = manifest.settings(cell, 0)
    return _objective(settings).sequence_length * settings.training.batch_size


def equal_steps(manifest: Manifest, cost: Sequence[float]) -> dict[str, int]:
    """Steps of every cell that cost as much as those of the baseline.

    Args:
        manifest: Its settings give the steps of the baseline.
        cost: Of a step of every cell, in the order of the grid.
    """
    settings = manifest.settings(manifest.grid.cells[0], 0)
    images = len(open_source(manifest.data, "train"))
    per_epoch = step_batches(images, settings.training.batch_size, settings.seed, 0, 0).steps_per_epoch
    steps = settings.training.steps or max(1, round((settings.training.epochs or 0) * per_epoch))
    return {
        cell.name: max(1, round(steps * cost[0] / cell_cost)) for cell, cell_cost in zip(manifest.grid.cells, cost, strict=True)
    }


def _objective(settings: PretrainSettings) -> Objective:
    return build_objective(settings, backbone_spec(settings).build(drop_path_rate=settings.training.drop_path))


def _run(manifest: Manifest, cell: Cell, seed: int, tasks: Sequence[Task]) -> None:
    run, settings = manifest.run(cell, seed), manifest.settings(cell, seed)
    if not run.backbone.is_dir():
        pretrain(manifest.data, settings, run.path, tokens=tokens_of(manifest, cell))
    # The random initialisation depends on the seed and the backbone alone: it is evaluated with the first objective.
    first = next(other for other in manifest.grid.cells if other.backbone == cell.backbone and other.varied == cell.varied)
    for data in dict.fromkeys(task.data for task in tasks):
        evaluate(
            run,
            data,
            [task.protocol for task in tasks if task.data == data],
            device=choose_device(settings.mechanics.device),
            workers=settings.mechanics.workers,
            max_unreadable=settings.mechanics.max_unreadable,
            with_random=cell == first,
        )


def _evaluate_tokens(manifest: Manifest, cell: Cell, seed: int, tasks: Sequence[Task]) -> None:
    mechanics, target = manifest.settings(cell, 0).mechanics, open_tokens(tokenizer_of(manifest, cell))
    for data in dict.fromkeys(task.data for task in tasks):
        data_tasks = [task for task in tasks if task.data == data]
        evaluate(
            target,
            data,
            [task.protocol_for(seed) for task in data_tasks],
            device=choose_device(mechanics.device),
            folder=data_tasks[0].folder(manifest, cell, seed),
            workers=mechanics.workers,
            max_unreadable=mechanics.max_unreadable,
        )
