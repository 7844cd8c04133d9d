"""What a segmentation tells about its steps: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import time

import torch

from mapet.runtime.progress import ProgressBar
from mapet.training.log import TrainingLog


class SegmentationLog(TrainingLog):
    """Means over the steps since the last entry."""

    def record(self, step: int, rate: float, bar: ProgressBar) -> None:
        """Writes an entry about the steps up to number `step`, and starts the next; nothing where no step was taken."""
        if not self.steps:
            return
        seconds = time.perf_counter() - self.window_began
        entry = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": float(torch.stack([sums.loss for sums in self.steps]).mean()),
            "pixel_accuracy": float(torch.stack([sums.metrics["pixel_accuracy"] for sums in self.steps]).mean()),
            "lr": rate,
            "gradient_norm": float(self.steps[-1].gradient_norm),
            "images_per_second": self.images / seconds,
            "waiting": self.waited / seconds,
            "seconds": time.perf_counter() - self.began,
        }
        self.run.append_metrics(entry)
        self.board.add(entry, step)
        bar.note(
            f"loss {entry['loss']:.3f}  pixels {entry['pixel_accuracy']:.3f}  {entry['images_per_second']:.1f} images/s  "
            f"waiting {entry['waiting']:.0%}"
        )
        self._clear()
