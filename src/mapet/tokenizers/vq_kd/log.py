"""What a VQ-KD training tells about its steps: metrics.jsonl, the progress bar, and a warning when codes fall out of use."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from mapet.runtime.progress import ProgressBar, say
from mapet.runtime.run_directory import RunDirectory
from mapet.tokenizers.vq_kd.codebook import RECENT_STEPS
from mapet.tokenizers.vq_kd.distillation import Distillation

# A codebook of which a smaller share is in use has collapsed.
COLLAPSED = 0.1


class TrainingLog:
    """Means over the steps since the last line, and the use of the codebook in the last `RECENT_STEPS`.

    Args:
        directory: Where metrics.jsonl is.
        model: In training.
        window: (n, 3) sums of the steps since the last line, as `window` gave them before an interruption.
    """

    def __init__(self, directory: RunDirectory, model: Distillation, window: Tensor) -> None:
        self.directory, self.model = directory, model
        self.warned = False
        self._clear()
        self.sums += window.unbind()

    def window(self) -> Tensor:
        """(n, 3) what was added since the last line."""
        return torch.stack(self.sums) if self.sums else torch.empty(0, 3)

    def add(self, sums: Tensor) -> None:
        """Adds what one step gave: sums of commitment, reconstruction, patches."""
        self.sums.append(sums[:3])

    def write(self, step: int, rate: float, bar: ProgressBar) -> None:
        """Writes one line about the steps up to number `step`, and shows it."""
        commitment, reconstruction, patches = torch.stack(self.sums).sum(0).tolist()
        rows, columns = self.model.tokenizer.grid_size
        entry = {
            "step": step,
            "loss": (commitment + reconstruction) / max(1, patches),
            "reconstruction": reconstruction / max(1, patches),
            "commitment": commitment / max(1, patches),
            "used_codes": self.model.recent.used(),
            "perplexity": self.model.recent.perplexity(),
            "lr": rate,
            "images_per_second": patches / (rows * columns) / (time.perf_counter() - self.began),
        }
        self.directory.append_metrics(entry)
        use = f"{entry['used_codes']} of {self.model.tokenizer.vocab_size} codes, perplexity {entry['perplexity']:.0f}"
        bar.note(f"loss {entry['loss']:.3f}  {use}  {entry['images_per_second']:.0f} images/s")
        self._warn(step, entry["used_codes"], patches / len(self.sums))
        self._clear()

    def _warn(self, step: int, used: int, patches_per_step: float) -> None:
        """Says once that the codebook has collapsed, when enough patches were seen to tell."""
        codes = self.model.tokenizer.vocab_size
        collapsed = step >= RECENT_STEPS and used < COLLAPSED * min(codes, patches_per_step * RECENT_STEPS)
        if collapsed and not self.warned:
            say(
                f"Step {step}: only {used} of {codes} codes were used in the last {RECENT_STEPS} steps. Fewer tokens (-k), shorter "
                "codes (--code-dim) or a larger batch usually help."
            )
        self.warned = collapsed

    def _clear(self) -> None:
        self.sums: list[Tensor] = []
        self.began = time.perf_counter()
