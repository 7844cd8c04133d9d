"""The choice of settings such as the learning rate, for every cell among the same values and on the same budget.

A trial is a pre-training with one of the values and a seed of its own. It sees all training images, without labels. Its backbone is
evaluated by the first protocol: that learns from the labels of some training images and is measured on the others. Test images are
never used.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace

from mapet.compare.grid import Cell
from mapet.compare.manifest import Manifest
from mapet.compare.tasks import Task
from mapet.compare.tokens import tokens_of
from mapet.errors import InUseError, NonFiniteLossError, SettingsError
from mapet.evaluation.evaluate import evaluate, validation_name
from mapet.evaluation.result_files import read_result
from mapet.pretraining.pretrain import pretrain
from mapet.runtime.device import choose_device
from mapet.runtime.files import write_json
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory

TUNING_SEED = 2**31  # no run of a comparison has it
VALIDATION_SHARE = 0.2  # of the training images
_SECONDS_BETWEEN_TRIES = 5.0


class Tuning:
    """The trials of a comparison, and what follows from them.

    Args:
        manifest: Of the comparison; its `chosen` is filled.
        task: What the choice is made by.

    Raises:
        SettingsError: The protocol needs masks and not labels, or evaluates tokenizers.
    """

    def __init__(self, manifest: Manifest, task: Task) -> None:
        if manifest.grid.tune and (task.protocol.metric == "miou" or task.is_of_tokenizers):
            raise SettingsError(
                f"--tune chooses by the first protocol on a part of the training images, which '{task.protocol.name}' cannot. "
                "Name another one first, such as knn."
            )
        self.manifest, self.task = manifest, task
        self.refresh()

    @property
    def values(self) -> list[tuple[tuple[str, str], ...]]:
        """The settings of every trial of a cell; none without --tune."""
        tune = self.manifest.grid.tune
        return [tuple(zip(tune, values, strict=True)) for values in itertools.product(*tune.values())] if tune else []

    @property
    def trials(self) -> list[tuple[Cell, Cell]]:
        """All trials: the cell, and the cell with the settings of the trial."""
        return [(cell, _with(cell, values)) for cell in self.manifest.grid.cells for values in self.values]

    def scores(self, cell: Cell) -> Mapping[Cell, float]:
        """The figure on the held-out training images, 0 to 1, of every trial of `cell` that is finished; 0 where it diverged."""
        scores = {}
        for trial in (_with(cell, values) for values in self.values):
            run = self.run(trial)
            if _diverged(run):
                scores[trial] = 0.0
            elif (path := run.evaluations / f"{self._stem}.json").is_file():
                scores[trial] = read_result(path).value
        return scores

    def refresh(self) -> None:
        """Takes into the manifest what every cell chose whose trials are all finished; of equal figures the first."""
        for cell in self.manifest.grid.cells if self.values else []:
            scores = self.scores(cell)
            if len(scores) == len(self.values):
                self.manifest.chosen_trials[cell] = max(scores, key=lambda trial: scores[trial])

    def run(self, trial: Cell) -> RunDirectory:
        """The directory of a trial."""
        return RunDirectory(self.manifest.out / "tuning" / trial.name)

    def require(self, cell: Cell) -> None:
        """Carries out what is left of the trials of `cell`, or waits for the jobs that do.

        Raises:
            MapetError: A trial failed for another reason than that it diverged.
        """
        for trial in (_with(cell, values) for values in self.values):
            waiting = False
            while trial not in self.scores(cell):
                try:
                    self.carry_out(cell, trial)
                except InUseError as error:
                    if not waiting:
                        say(f"Waiting for a trial of another job: {error}")
                    waiting = True
                    time.sleep(_SECONDS_BETWEEN_TRIES)
        self.refresh()

    def carry_out(self, cell: Cell, trial: Cell) -> None:
        """Trains and evaluates a trial, unless that was done.

        Raises:
            MapetError: It failed for another reason than that it diverged, or another process carries it out.
        """
        run = self.run(trial)
        settings = self.manifest.trial_settings(cell, trial, TUNING_SEED)
        try:
            if not run.backbone.is_dir():
                pretrain(self.manifest.data, settings, run.path, tokens=tokens_of(self.manifest, cell))
            evaluate(
                run,
                self.task.data,
                [self.task.protocol],
                device=choose_device(settings.mechanics.device),
                workers=settings.mechanics.workers,
                max_unreadable=settings.mechanics.max_unreadable,
                with_random=False,
                validation_share=VALIDATION_SHARE,
            )
        except NonFiniteLossError as error:
            write_json(run.path / "diverged.json", {"reason": str(error)})

    @property
    def _stem(self) -> str:
        return self.task.protocol.stem(validation_name(self.task.data, VALIDATION_SHARE))


def _with(cell: Cell, values: tuple[tuple[str, str], ...]) -> Cell:
    return replace(cell, varied=(*cell.varied, *values))


def _diverged(run: RunDirectory) -> bool:
    return (run.path / "diverged.json").is_file()
