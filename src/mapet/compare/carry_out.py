"""Carries out a comparison: tokens once for all runs, then every run and its evaluations, in any number of jobs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mapet.compare.grid import Cell
from mapet.compare.manifest import Manifest
from mapet.compare.tokens import make_tokens
from mapet.config.settings import PretrainSettings
from mapet.data.order import step_batches
from mapet.data.sources import open_source
from mapet.errors import InUseError, MapetError
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.protocol import Protocol
from mapet.objectives import OBJECTIVES
from mapet.objectives.base import Objective
from mapet.pretraining.pretrain import backbone_spec, build_objective, pretrain
from mapet.pretraining.step import TrainingStep
from mapet.runtime.device import choose_device
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory

_TIMED_STEPS = 3
_SECONDS_BETWEEN_TRIES = 5.0


def carry_out(manifest: Manifest, protocols: Sequence[Protocol], part: tuple[int, int] = (1, 1)) -> list[str]:
    """Trains and evaluates what is left, seed by seed, so that a comparison that is stopped has whole seeds.

    Args:
        manifest: Of the comparison, begun.
        protocols: What to measure.
        part: (i, n): this job takes every n-th run, from the i-th on; jobs meet in the folder of the comparison.

    Returns:
        A sentence for every run that failed; the others went on.
    """
    failed = []
    todo = [(cell, seed) for seed in range(manifest.grid.seeds) for cell in manifest.grid.cells][part[0] - 1 :: part[1]]
    for number, (cell, seed) in enumerate(todo, 1):
        run = manifest.run(cell, seed)
        if is_finished(run, manifest.data, protocols):
            continue
        say(f"Run {number} of {len(todo)}: {cell.title(manifest.grid)}, seed {seed}.")
        try:
            _run(manifest, cell, seed, run, protocols)
        except InUseError as error:
            say(f"Left to another job: {error}")
        except MapetError as error:
            if error.exit_code == 130:
                raise
            failed.append(f"{cell.title(manifest.grid)}, seed {seed}: {error}")
            say(f"This run failed, and the comparison goes on: {error}")
    return failed


def is_finished(run: RunDirectory, data: str, protocols: Sequence[Protocol]) -> bool:
    """Whether a run has its backbone and the results of all protocols."""
    return run.backbone.is_dir() and all(result_file(run, data, protocol).is_file() for protocol in protocols)


def result_file(run: RunDirectory, data: str, protocol: Protocol) -> Path:
    """Where the result of a protocol on a run is kept."""
    return run.evaluations / f"{protocol.stem(data)}.json"


def seconds_per_step(manifest: Manifest, cell: Cell) -> float:
    """The median of a few optimizer steps of a cell on images of noise, without the time that loading takes."""
    settings = manifest.settings(cell, 0)
    device, size = choose_device(settings.mechanics.device), settings.training.batch_size
    objective = _objective(settings).to(device)
    step = TrainingStep(objective, settings, device)
    images = torch.randint(0, 256, (size, 3, objective.view_size, objective.view_size), dtype=torch.uint8, device=device)
    tokens = torch.randint(0, settings.tokenizer.vocab_size, (size, objective.num_patches), device=device)
    taken = []
    for number in range(_TIMED_STEPS + 1):
        began = time.perf_counter()
        float(step(images, tokens if "tokens" in objective.needs else None, number, 0.0).loss)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])  # the first one allocates


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
    return {cell.name: max(1, round(steps * cost[0] / own)) for cell, own in zip(manifest.grid.cells, cost, strict=True)}


def _objective(settings: PretrainSettings) -> Objective:
    return build_objective(settings, backbone_spec(settings).build(drop_path_rate=settings.training.drop_path))


def _run(manifest: Manifest, cell: Cell, seed: int, run: RunDirectory, protocols: Sequence[Protocol]) -> None:
    settings = manifest.settings(cell, seed)
    if not run.backbone.is_dir():
        tokens = None
        if "tokens" in OBJECTIVES.get(cell.objective).needs and settings.view.name != "online":
            tokens = _tokens(manifest, cell)
        pretrain(manifest.data, settings, run.path, tokens=tokens)
    left = [protocol for protocol in protocols if not result_file(run, manifest.data, protocol).is_file()]
    # The random initialisation depends on the seed and the backbone alone: it is evaluated with the first objective.
    first = next(other for other in manifest.grid.cells if other.backbone == cell.backbone and other.varied == cell.varied)
    evaluate(
        run,
        manifest.data,
        left,
        device=choose_device(settings.mechanics.device),
        workers=settings.mechanics.workers,
        max_unreadable=settings.mechanics.max_unreadable,
        with_random=cell == first,
    )


def _tokens(manifest: Manifest, cell: Cell) -> Path:
    """The tokens of a cell, made once for all its runs; waits for the job that makes them."""
    settings, waiting = manifest.settings(cell, 0), False
    while True:
        try:
            return make_tokens(manifest.data, settings, manifest.out / "tokens", cell.tokenizer or "")
        except InUseError as error:
            if not waiting:
                say(f"Waiting for the tokens that another job makes: {error}")
            waiting = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
