"""What vital signs mean: the rules by which a run is warned of, each with what usually is the cause and what to do.

Every rule compares a figure of the run with another one of the same run (its vocabulary, its token frequencies, its own past), so
that none depends on data or model size. Loss and collapse are evaluated once the learning rate has had time to work, at the
`RunFacts.deadline`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from mapet.engine.callbacks import LogPoint
from mapet.health.accuracy_band import AccuracyBand
from mapet.health.context import PretrainContext
from mapet.health.fixed_batch import TokenSigns
from mapet.health.token_floor import TokenFloor
from mapet.health.updates import group_of
from mapet.objectives.base import TokenObjective

LARGE_UPDATE, SMALL_UPDATE = 1e-1, 1e-6
SLUGGISH_UPDATE = 5e-4
LARGE_GRADIENT = 10
SETTLED_STEPS = 50  # until then, parts that begin at zero move by a multiple of themselves
ERRORS_OF_GAIN = 2.5
_SMOOTHED_STEPS = 30
_REMEMBERED = 10


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before it begins.

    Args:
        total_steps: Of the run.
        warmup_steps: At its beginning.
        peak_lr: The learning rate behind the warm-up.
        clip_norm: Gradients are clipped to it; None if they are not.
        vocab_size: Number of tokens; None where none are predicted.
        log_every: Steps between log points.
    """

    total_steps: int
    warmup_steps: int
    peak_lr: float
    clip_norm: float | None
    vocab_size: int | None
    log_every: int

    @classmethod
    def of(cls, run: PretrainContext) -> RunFacts:
        """Those of a pre-training."""
        training, objective = run.settings.training, run.objective
        vocab_size = objective.vocab_size if isinstance(objective, TokenObjective) else None
        log_every = run.settings.mechanics.log_every
        return cls(run.total_steps, run.warmup_steps, training.lr, training.clip_norm, vocab_size, log_every)

    @property
    def deadline(self) -> int:
        """The step from which on a healthy run has begun to learn: a tenth of the run, 100 to 1000 steps, behind the warm-up."""
        return self.warmup_steps + min(1000, max(100, math.ceil(0.1 * self.total_steps)))


class Rules:
    """Remembers what it must of a run, and evaluates every new entry.

    Args:
        facts: Of the run.
        entries: What was logged before this start.
    """

    def __init__(self, facts: RunFacts, entries: Iterable[Mapping[str, float]] = ()) -> None:
        self.facts = facts
        self._losses: deque[float] = deque(maxlen=max(3, math.ceil(_SMOOTHED_STEPS / facts.log_every)))
        self._norms: deque[float] = deque(maxlen=_REMEMBERED)
        self._first = self._lowest = math.inf
        self._rank = 0.0
        for entry in entries:
            self._remember(entry)

    def warnings(
        self,
        point: LogPoint,
        scalars: Mapping[str, float],
        norms: Mapping[str, tuple[float, float]],
        signs: TokenSigns | None,
        floor: TokenFloor | None,
        band: AccuracyBand | None = None,
    ) -> dict[str, str | None]:
        """The warnings of a new entry; None where a possible fault is absent.

        Args:
            point: What is logged.
            scalars: The vital signs that go with it.
            norms: (moved, weight) of every part, where a step was measured.
            signs: The measurements on the fixed images, where there are any.
            floor: What the token frequencies give, where the loss can be compared with it.
            band: The token accuracies to expect, where they are known.
        """
        jump = self._spike(point.entry["loss"])
        self._remember({**point.entry, **scalars})
        warnings: dict[str, str | None] = {} if jump is None else {"spike": jump}  # what happened does not become undone
        if len(self._losses) == self._losses.maxlen:
            warnings |= {"clipped": self._clipped(), "diverging": self._diverging(floor is not None)}
        if norms and point.lr > 0:
            factor = self.facts.peak_lr / point.lr
            warnings |= {"frozen": _frozen(norms), "small_update": self._small_update(norms, factor)}
            if point.step > SETTLED_STEPS:
                warnings["large_update"] = self._large_update(norms)
            if point.step >= self.facts.deadline:
                warnings["sluggish"] = self._sluggish(point.step, _ratio(norms), factor, floor)
        if band is not None and "token_accuracy" in point.entry:
            warnings["leaking"] = _leaking(point.entry["token_accuracy"], band)
        if signs is not None and point.step >= self.facts.deadline:
            warnings["blind"] = _blind(point.step, signs)
        if "effective_rank/patches" in scalars and point.step >= self.facts.deadline:
            warnings["collapsed"] = self._collapsed(scalars["effective_rank/patches"])
        return warnings

    def _remember(self, entry: Mapping[str, float]) -> None:
        if "loss" not in entry:
            return
        self._first = entry["loss"] if math.isinf(self._first) else self._first
        self._losses.append(entry["loss"])
        self._norms.append(entry.get("gradient_norm", 0.0))
        if len(self._losses) == self._losses.maxlen:
            self._lowest = min(self._lowest, fmean(self._losses))
        if entry.get("step", 0) >= self.facts.deadline:
            self._rank = max(self._rank, entry.get("effective_rank/patches", 0.0))

    def _spike(self, loss: float) -> str | None:
        """One entry far above those before it."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return None
        usual = fmean(self._losses)
        if usual <= 0 or loss < 1.5 * usual:
            return None
        return (
            f"The loss jumped from {usual:.3g} to {loss:.3g}. One spike may heal by itself; if they come again, lower training.lr "
            "or training.clip_norm, or lengthen the warm-up."
        )

    def _clipped(self) -> str | None:
        clip, least = self.facts.clip_norm, min(self._norms)
        if clip is None or len(self._norms) < _REMEMBERED or least <= LARGE_GRADIENT * clip:
            return None
        return (
            f"The gradient is always clipped: its norm was {least:.3g} or more in the last {_REMEMBERED} entries, and "
            f"training.clip_norm is {clip:g}. The loss may be on another scale than the recipe expects, or training.lr is too high."
        )

    def _diverging(self, of_tokens: bool) -> str | None:
        """Against a blind guess, where the loss is in nats a token, and against the best of its own past."""
        loss, blind = fmean(self._losses), math.log(self.facts.vocab_size or 1)
        if of_tokens and loss > 1.05 * blind:
            problem = f"The loss is {loss:.3g}; a blind guess among {self.facts.vocab_size} tokens has {blind:.3g}."
        elif loss - self._lowest > (0.1 if of_tokens else 0.5) * abs(self._lowest):
            problem = f"The loss rises: it was {self._lowest:.3g} and is {loss:.3g}."
        else:
            return None
        return f"{problem} {self._too_high()}"

    def _large_update(self, norms: Mapping[str, tuple[float, float]]) -> str | None:
        large = [part for part, (moved, size) in norms.items() if moved > LARGE_UPDATE * size]
        if not large:
            return None
        most = max(_ratio({part: norms[part]}) for part in large)
        return (
            f"One step changes the weights of {_named(large, norms)} by up to {most:.0%} of their size; a hundredth is usual. "
            f"{self._too_high()}"
        )

    def _small_update(self, norms: Mapping[str, tuple[float, float]], factor: float) -> str | None:
        """As the update would be at the highest learning rate."""
        small = [part for part, (moved, size) in norms.items() if 0 < moved * factor < SMALL_UPDATE * size]
        if not small:
            return None
        return (
            f"One step changes the weights of {_named(small, norms)} by less than a millionth of their size: they learn nothing. "
            f"training.lr is {self.facts.peak_lr:g}; if that is intended, check the gradients of these weights."
        )

    def _sluggish(self, step: int, ratio: float, factor: float, floor: TokenFloor | None) -> str | None:
        """How far the loss has come: at least half the way from a blind guess to the token frequencies, which are learned first."""
        loss, blind = fmean(self._losses), math.log(self.facts.vocab_size or 1)
        if floor is None:
            stuck = self._first - loss < 0.01 * abs(self._first)
            comparison = f"it began at {self._first:.3g}"
        else:
            floor_entropy = floor.entropy if floor.entropy_by_position is None else min(floor.entropy, floor.entropy_by_position)
            stuck = blind - floor_entropy > 0.05 and loss > (blind + floor_entropy) / 2
            comparison = f"a blind guess has {blind:.3g}, the token frequencies alone give {floor_entropy:.3g}"
        if not stuck:
            return None
        too_low = f"The learning rate is probably too low (training.lr is {self.facts.peak_lr:g}): try ten times as much."
        cause = too_low if ratio * factor < SLUGGISH_UPDATE else self._too_high()
        return f"After {step} steps the loss is {loss:.3g}; {comparison}. The relative update of a step is {ratio:.1g}. {cause}"

    def _collapsed(self, rank: float) -> str | None:
        if rank >= 2 and rank >= 0.1 * self._rank:
            return None
        return (
            f"The features collapse: those of all patches span {rank:.3g} effective dimensions, at best it was {self._rank:.3g}. "
            "The features of all patches are nearly equal. Lower training.lr or lengthen the warm-up; an earlier checkpoint may "
            "be sound."
        )

    def _too_high(self) -> str:
        return f"The learning rate is probably too high (training.lr is {self.facts.peak_lr:g}): try a tenth of it."


def _frozen(norms: Mapping[str, tuple[float, float]]) -> str | None:
    still = [part for part, (moved, _) in norms.items() if moved == 0]
    if not still:
        return None
    return (
        f"The weights of {_named(still, norms)} did not move in a step: no gradient reaches them, or requires_grad is False. "
        "Unless they are frozen on purpose, check how the objective uses the backbone."
    )


def _blind(step: int, signs: TokenSigns) -> str | None:
    """Whether predictions depend on their image."""
    gain, error = signs.gain / math.log(2), signs.gain_error / math.log(2)
    if gain > ERRORS_OF_GAIN * error:
        return None
    return (
        f"After {step} steps the predictions fit the tokens of other images as well as those of their own: a gain of {gain:.3f} "
        f"bits a token with a standard error of {error:.3f}. Either nothing but token frequencies was learned so far, or the "
        "tokens do not belong to these images: `mapet tokenize --verify` compares them, `mapet codebook` shows them."
    )


def _leaking(accuracy: float, band: AccuracyBand) -> str | None:
    """Whether targets are predicted too well to be unknown."""
    if accuracy <= band.leaking:
        return None
    return (
        f"The token accuracy is {accuracy:.1%}, and the best guess from a neighbour is right {band.neighbour:.1%} of the time: the "
        "objective seems to give its targets away. Check that hidden patches reach no prediction, neither as pixels nor as tokens."
    )


def _ratio(norms: Mapping[str, tuple[float, float]]) -> float:
    """Relative update of all parts together."""
    moved, size = (sum(pair[which] ** 2 for pair in norms.values()) ** 0.5 for which in (0, 1))
    return moved / max(size, 1e-12)


def _named(parts: list[str], norms: Mapping[str, object]) -> str:
    """Parts in words; all blocks together where all of them are meant."""
    blocks = [part for part in norms if group_of(part) == "blocks"]
    if blocks and set(blocks) <= set(parts):
        parts = [*(part for part in parts if part not in blocks), f"all {len(blocks)} blocks"]
    names = [part.replace("_", " ").replace("blocks.", "block ") for part in parts]
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
