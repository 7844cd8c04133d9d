"""What a fine-tuning tells about its steps and its looks at the test images: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import time

import torch

from mapet.runtime.progress import ProgressBar
from mapet.training.log import TrainingLog


class FineTuneLog(TrainingLog):
    """Entries about the steps since the last one, and about the test images."""

    accuracy: float | None = None

    def record(self, step: int, rate: float, bar: ProgressBar) -> None:
        """Writes an entry about the steps up to number `step`, with the loss per image, and starts the next."""
        seconds = time.perf_counter() - self.window_began
        entry = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": float(torch.stack([sums.loss for sums in self.steps]).sum()) / max(1, self.images),
            "lr": rate,
            "gradient_norm": float(self.steps[-1].gradient_norm),
            "images_per_second": self.images / seconds,
            "waiting": self.waited / seconds,
            "seconds": time.perf_counter() - self.began,
        }
        self._keep(entry)
        accuracy = "" if self.accuracy is None else f"test accuracy {self.accuracy:.3f}  "
        bar.note(f"loss {entry['loss']:.3f}  {accuracy}{entry['images_per_second']:.0f} images/s  waiting {entry['waiting']:.0%}")
        self._clear()

    def record_figures(self, step: int, figures: dict[str, float]) -> None:
        """Writes an entry about the test images after `step` steps; the time that judging them took counts for no step."""
        self._keep({"step": step, "epoch": step / self.steps_per_epoch, **{f"test_{name}": figures[name] for name in figures}})
        self.accuracy = figures["top1"]
        self._clear()

    def _keep(self, entry: dict[str, float]) -> None:
        self.run.append_metrics(entry)
        self.board.add(entry, int(entry["step"]))
