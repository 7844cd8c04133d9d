"""What a training on labels tells of its steps and its looks at the test images: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

from mapet.runtime.progress import ProgressBar
from mapet.training.log import OF_EVERY_ENTRY, TrainingLog


class SupervisedLog(TrainingLog):
    """Entries about the steps since the last one, and about the test images."""

    looked = ""

    def record(self, step: int, rate: float, bar: ProgressBar) -> None:
        """Writes an entry about the steps up to number `step`, and starts the next; nothing where no step was taken."""
        if not self.steps:
            return
        entry = self._means(step, rate)
        self._keep(entry)
        own = "".join(f"{name.replace('_', ' ')} {entry[name]:.3f}  " for name in entry if name not in OF_EVERY_ENTRY)
        speed = f"{entry['images_per_second']:.{0 if entry['images_per_second'] >= 10 else 1}f} images/s"
        bar.note(f"loss {entry['loss']:.3f}  {own}{self.looked}{speed}  waiting {entry['waiting']:.0%}")

    def record_figures(self, step: int, figures: dict[str, float]) -> None:
        """Writes an entry about the test images after `step` steps; the time that judging them took counts for no step."""
        self._keep({"step": step, "epoch": step / self.steps_per_epoch, **{f"test_{name}": figures[name] for name in figures}})
        name, value = next(iter(figures.items()))
        self.looked = f"test {name} {value:.3f}  "
