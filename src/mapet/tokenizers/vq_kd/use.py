"""The use of the codebook while VQ-KD trains, and a warning when codes fall out of use."""

from __future__ import annotations

from mapet.engine.callbacks import LogPoint, Monitor, Observation, RunContext
from mapet.tokenizers.vq_kd.codebook import RECENT_STEPS
from mapet.tokenizers.vq_kd.distillation import Distillation

# A codebook of which a smaller share is in use has collapsed.
COLLAPSED = 0.1


class CodebookUse(Monitor[RunContext]):
    """Counts the codes that were used in the last `RECENT_STEPS` steps.

    Args:
        model: In training.
        patches_per_step: Of all processes.
    """

    def __init__(self, model: Distillation, patches_per_step: int) -> None:
        self._model, self._patches_per_step = model, patches_per_step

    def observe(self, point: LogPoint) -> Observation:
        """Used codes and perplexity, and whether the codebook has collapsed, when enough patches were seen."""
        used, perplexity = self._model.recent.used(), self._model.recent.perplexity()
        codes = self._model.tokenizer.vocab_size
        note = f"{used} of {codes} codes, perplexity {perplexity:.0f}"
        scalars = {"used_codes": used, "perplexity": perplexity}
        return Observation(scalars, {"collapsed_codebook": self._collapsed(point.step, used)}, note)

    def _collapsed(self, step: int, used: int) -> str | None:
        codes = self._model.tokenizer.vocab_size
        if step < RECENT_STEPS or used >= COLLAPSED * min(codes, self._patches_per_step * RECENT_STEPS):
            return None
        return (
            f"Only {used} of {codes} codes were used in the last {RECENT_STEPS} steps. Fewer tokens (-k), shorter codes "
            "(--code-dim) or a larger batch usually help."
        )
