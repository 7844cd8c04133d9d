"""What a run tells about its steps: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from mapet.runtime.files import storage_errors
from mapet.runtime.progress import ProgressBar
from mapet.runtime.run_directory import RunDirectory
from mapet.training.monitor import Moment, Watch
from mapet.training.step import StepSums

Item = TypeVar("Item")
# What every entry holds, whatever the objective.
OF_EVERY_ENTRY = {"step", "epoch", "loss", "lr", "gradient_norm", "images", "images_per_second", "waiting", "seconds"}


class TrainingLog:
    """Sums over the steps since the last entry, kept on the device until they are written.

    Args:
        run: Where metrics.jsonl and TensorBoard's events are written.
        first_step: Where this start goes on; events of later steps that an earlier start wrote are withdrawn.
        steps_per_epoch: To give the epoch of a step.
    """

    def __init__(self, run: RunDirectory, first_step: int, steps_per_epoch: int) -> None:
        self.run, self.steps_per_epoch = run, steps_per_epoch
        self.board = EventFile(run.tensorboard, purge_from=first_step + 1)
        self.began = time.perf_counter()
        self._clear()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Passes batches on and adds up how long each was waited for."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, sums: StepSums, images: int) -> None:
        """Adds one step on so many images, those that could be read."""
        self.steps.append(sums)
        self.images.append(images)

    def window(self) -> dict[str, Tensor]:
        """The sums of every step since the last entry, each (steps,), for a checkpoint; nothing where there is no such step."""
        if not self.steps:
            return {}
        columns = {"loss": [sums.loss for sums in self.steps], "targets": [sums.targets for sums in self.steps]}
        columns |= {f"metrics.{name}": [sums.metrics[name] for sums in self.steps] for name in self.steps[0].metrics}
        return {"images": torch.tensor(self.images)} | {name: torch.stack(column) for name, column in columns.items()}

    def restore(self, window: Mapping[str, Tensor], device: torch.device) -> None:
        """Goes on where a checkpoint has left off, so that an interrupted log has the lines of one that was not."""
        if "loss" not in window:
            return
        columns = {name: column.to(device) for name, column in window.items()}
        self.images = columns["images"].tolist()
        self.restored = sum(self.images)
        for row in range(len(columns["loss"])):
            metrics = {
                name.removeprefix("metrics."): column[row] for name, column in columns.items() if name.startswith("metrics.")
            }
            loss = columns["loss"][row]
            self.steps.append(StepSums(loss, columns["targets"][row], metrics, torch.full_like(loss, float("nan"))))

    def write(self, step: int, rate: float, bar: ProgressBar, watch: Watch) -> None:
        """Writes one entry about the steps since the last one, up to number `step`, with what `watch` sees; starts the next."""
        entry = self._means(step, rate)
        entry |= watch.observe(Moment(step, rate, entry))
        self._keep(entry)
        bar.note(_note(entry))

    def _means(self, step: int, rate: float) -> dict[str, float]:
        """Over the steps since the last entry; waits for the device."""
        targets = float(torch.stack([sums.targets for sums in self.steps]).sum())
        seconds = time.perf_counter() - self.window_began
        names = self.steps[0].metrics
        means = {name: float(torch.stack([sums.metrics[name] for sums in self.steps]).sum()) / max(1, targets) for name in names}
        if "correct" in means:
            means["token_accuracy"] = means.pop("correct")
        return {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": float(torch.stack([sums.loss for sums in self.steps]).sum()) / max(1, targets),
            **means,
            "lr": rate,
            "gradient_norm": float(self.steps[-1].gradient_norm),
            "images": sum(self.images),
            "images_per_second": (sum(self.images) - self.restored) / seconds,
            "waiting": self.waited / seconds,
            "seconds": time.perf_counter() - self.began,
        }

    def _keep(self, entry: dict[str, float]) -> None:
        """Writes an entry; what comes now belongs to the next."""
        self.run.append_metrics(entry)
        self.board.add(entry, int(entry["step"]))
        self._clear()

    def _clear(self) -> None:
        self.steps: list[StepSums] = []
        self.images: list[int] = []
        self.restored = 0  # images of the entry that an earlier start has trained on
        self.waited = 0.0
        self.window_began = time.perf_counter()


class EventFile:
    """Scalars for TensorBoard, on disk when `add` returns.

    PyTorch's SummaryWriter keeps them in a thread for up to two minutes: lost when the process is killed, and a foreign traceback
    when the disk is full.

    Args:
        folder: TensorBoard's log directory.
        purge_from: Events of this step and later ones in older files of the folder are withdrawn.
    """

    def __init__(self, folder: Path, purge_from: int) -> None:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=purge_from, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: dict[str, float], step: int) -> None:
        """Adds one value for each name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items() if name != "step"]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with storage_errors(self.path), self.path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _note(entry: dict[str, float]) -> str:
    accuracy = f"accuracy {entry['token_accuracy']:.3f}  " if "token_accuracy" in entry else ""
    gained = f"{entry['bits_gained']:+.2f} bits  " if "bits_gained" in entry else ""
    return f"loss {entry['loss']:.3f}  {gained}{accuracy}{entry['images_per_second']:.0f} images/s  waiting {entry['waiting']:.0%}"
