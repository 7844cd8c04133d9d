"""What is logged of a training: metrics.jsonl, TensorBoard, and the note at the progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mapet.engine.callbacks import Callbacks, LogPoint
from mapet.engine.step import StepSums
from mapet.engine.tensorboard import EventFile
from mapet.runtime.progress import ProgressBar
from mapet.runtime.run_directory import RunDirectory

Item = TypeVar("Item")
# What every entry about training steps holds, whatever is trained.
OF_EVERY_ENTRY = {"step", "epoch", "loss", "lr", "gradient_norm", "images", "images_per_second", "waiting", "seconds"}
_METRIC = "metrics."  # begins the names of metrics in a checkpoint
_RENAMED = {"metrics.correct": "metrics.token_accuracy"}  # in checkpoints of earlier releases


@dataclass(frozen=True)
class LoggedStep:
    """One step: its sums, and the number of images that could be read."""

    sums: StepSums
    images: int


class TrainingLog:
    """Sums over the steps since the last entry, kept on the device until they are written.

    Args:
        directory: Where metrics.jsonl and TensorBoard's events are written.
        first_step: Where this start continues; events of later steps that an earlier start wrote are withdrawn.
        steps_per_epoch: Gives the epoch of a step.
        writes: Whether this process writes; of several processes, only the first does.
    """

    def __init__(self, directory: RunDirectory, first_step: int, steps_per_epoch: int, writes: bool = True) -> None:
        self._directory, self._steps_per_epoch = directory, steps_per_epoch
        self._board = EventFile(directory.tensorboard, purge_from=first_step + 1) if writes else None
        self._began = time.perf_counter()
        self._evaluated = ""
        self._clear()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Passes batches on and adds up how long each was waited for."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, sums: StepSums, images: int) -> None:
        """Adds one step on so many images."""
        self._steps.append(LoggedStep(sums, images))

    def window(self) -> dict[str, Tensor]:
        """The sums of every step since the last entry, each (steps,), for a checkpoint; nothing where there is no such step."""
        if not self._steps:
            return {}
        sums = [step.sums for step in self._steps]
        columns = {"loss": [each.loss for each in sums], "targets": [each.targets for each in sums]}
        columns |= {f"{_METRIC}{name}": [each.metrics[name] for each in sums] for name in sums[0].metrics}
        images = {"images": torch.tensor([step.images for step in self._steps])}
        return images | {name: torch.stack(column) for name, column in columns.items()}

    def restore(self, window: Mapping[str, Tensor], device: torch.device) -> None:
        """Continues from the `window` of a checkpoint, so that an interrupted log has the entries of one that was not."""
        if "loss" not in window:
            return
        columns = {_RENAMED.get(name, name): column.to(device) for name, column in window.items()}
        metric_columns = {name[len(_METRIC) :]: column for name, column in columns.items() if name.startswith(_METRIC)}
        for row, images in enumerate(columns["images"].tolist()):
            metrics = {name: column[row] for name, column in metric_columns.items()}
            loss = columns["loss"][row]
            self.add(StepSums(loss, columns["targets"][row], metrics, torch.full_like(loss, float("nan"))), images)
        self._restored_images = sum(step.images for step in self._steps)

    def write(self, step: int, lr: float, bar: ProgressBar | None, callbacks: Callbacks) -> None:
        """Writes one entry about the steps since the last one, up to number `step`, with what monitors observe; starts the next."""
        if not self._steps:
            return
        entry = self._means(step, lr)
        metrics = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in entry.items() if name not in OF_EVERY_ENTRY]
        scalars, notes = callbacks.observe(LogPoint(step, lr, entry))
        entry |= scalars
        self._keep(entry)
        speed = entry["images_per_second"]
        words = [f"loss {entry['loss']:.3f}", *notes, *metrics, *([self._evaluated] if self._evaluated else [])]
        if bar is not None:
            bar.note("  ".join([*words, f"{speed:.{0 if speed >= 10 else 1}f} images/s", f"waiting {entry['waiting']:.0%}"]))

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes an entry about the test images after `step` steps; the time of that evaluation counts for no step."""
        self._keep({"step": step, "epoch": step / self._steps_per_epoch, **{f"test_{name}": metrics[name] for name in metrics}})
        name, value = next(iter(metrics.items()))
        self._evaluated = f"test {name} {value:.3f}"

    def _means(self, step: int, lr: float) -> dict[str, float]:
        """Over the steps since the last entry; waits for the device."""
        seconds = time.perf_counter() - self._window_began
        sums = [logged.sums for logged in self._steps]
        images = sum(logged.images for logged in self._steps)
        targets = float(torch.stack([each.targets for each in sums]).sum())
        names = sums[0].metrics
        return {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "loss": float(torch.stack([each.loss for each in sums]).sum()) / max(1, targets),
            **{name: float(torch.stack([each.metrics[name] for each in sums]).sum()) / max(1, targets) for name in names},
            "lr": lr,
            "gradient_norm": float(sums[-1].gradient_norm),
            "images": images,
            "images_per_second": (images - self._restored_images) / seconds,
            "waiting": self._waited / seconds,
            "seconds": time.perf_counter() - self._began,
        }

    def _keep(self, entry: dict[str, float]) -> None:
        """Writes an entry; what comes now belongs to the next."""
        if self._board is not None:
            self._directory.append_metrics(entry)
            self._board.add(entry, int(entry["step"]))
        self._clear()

    def _clear(self) -> None:
        self._steps: list[LoggedStep] = []
        self._restored_images = 0  # of the next entry; an earlier start has trained on them
        self._waited = 0.0
        self._window_began = time.perf_counter()
