"""The grid of a comparison: objectives x tokenizers x backbones x whatever else is varied x seeds, as runs with settings."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mapet.config import load_recipe
from mapet.config.recipes import parse_options
from mapet.config.settings import ObjectiveSettings, PretrainSettings, TrainingSettings
from mapet.errors import SettingsError, nearest
from mapet.objectives import OBJECTIVES
from mapet.registry import options_of
from mapet.tokenizers.features.names import check_features_name
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.place import is_saved

RANDOM = "random initialisation"


@dataclass(frozen=True)
class Cell:
    """One way to pre-train, for all seeds.

    Args:
        objective: Its registered name, which may have options: `zoomed_in[mask_ratio=0.75]`; "" where the tokens themselves are
            evaluated, and nothing is pre-trained.
        tokenizer: The features of one that is fitted, or the path of a saved one; None where the objective predicts no tokens.
        backbone: timm's name; "" for that of the recipe.
        varied: Further settings, name to value as text.
    """

    objective: str
    tokenizer: str | None
    backbone: str = ""
    varied: tuple[tuple[str, str], ...] = ()

    def title(self, grid: Grid) -> str:
        """Its differences from the other cells of `grid`."""
        if not self.objective:
            return f"{_label(self.tokenizer or 'tokens')} alone"
        parts = [self.objective] if len(grid.objectives) > 1 else []
        if len(grid.tokenizers) > 1 and self.tokenizer is not None:
            parts.append(_label(self.tokenizer))
        parts += [self.backbone] if len(grid.backbones) > 1 else []
        return ", ".join([*parts, *filter(None, [described(self.varied)])]) or self.objective

    @property
    def name(self) -> str:
        """Of its runs, as part of a file name: the same in every grid that holds the cell."""
        parts = [self.objective, _label(self.tokenizer or ""), self.backbone]
        parts += [f"{name.rpartition('.')[2]}-{value}" for name, value in self.varied]
        readable = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts)))
        with_options = self.objective if "[" in self.objective else ""
        exact = hashlib.sha256(f"{with_options}{(self.tokenizer, self.varied)!r}".encode()).hexdigest()[:4]
        return f"{readable}-{exact}" if with_options or self.varied or is_saved(self.tokenizer or "") else readable

    @property
    def needs(self) -> Collection[str]:
        """What the objective needs besides images."""
        return OBJECTIVES.get(parse_objective(self.objective)[0]).needs


@dataclass(frozen=True)
class Grid:
    """What is compared; everything else is equal.

    Args:
        objectives: Registered names. The first one is the baseline of the others, see `baseline`.
        tokenizers: Features, or paths of saved tokenizers; () for what the recipe has.
        backbones: timm's names; () for that of the recipe.
        vary: Settings to several values each, as `--set` takes them.
        tune: The same, of which every cell chooses one on held-out training images; see `tuning`.
        seeds: Of the runs: 0, 1, ...
    """

    objectives: tuple[str, ...]
    tokenizers: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    vary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tune: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int = 3

    def __post_init__(self) -> None:
        for name in self.objectives:
            parse_objective(name)
        for kind, values in (("objective", self.objectives), ("tokenizer", self.tokenizers), ("backbone", self.backbones)):
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise SettingsError(f"The {kind} {twice[0]} is named twice. Name each once.")
        if both := sorted(self.vary.keys() & self.tune.keys()):
            raise SettingsError(f"{both[0]} is varied and tuned. Do one of the two.")
        if not (self.objectives or self.tokenizers) or self.seeds < 1:
            raise SettingsError("A comparison needs at least one objective, or tokenizers alone, and one seed.")

    @property
    def cells(self) -> list[Cell]:
        """All ways to pre-train, the baseline first. An objective without tokens comes once for all tokenizers."""
        varied = [tuple(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        cells = [
            Cell(objective, tokenizer if "tokens" in Cell(objective, None).needs else None, backbone, combination)
            for tokenizer in self.tokenizers or ("",)
            for backbone in self.backbones or ("",)
            for combination in varied
            for objective in self.objectives
        ]
        return [*dict.fromkeys(cells)]

    @property
    def token_cells(self) -> list[Cell]:
        """The tokenizers, for protocols that evaluate the tokens themselves."""
        return [Cell("", tokenizer) for tokenizer in self.tokenizers or ("",)]

    def baseline(self, cell: Cell) -> Cell:
        """What a cell is compared with: the first objective on the same tokens, backbone and settings.

        The first objective itself is compared with the first cell, and a tokenizer with the first one.
        """
        if not cell.objective:
            return self.token_cells[0]
        first = self.cells[0]
        if cell.objective == first.objective:
            return first
        equal = (
            other
            for other in self.cells
            if other.objective == first.objective and (other.backbone, other.varied) == (cell.backbone, cell.varied)
            if None in (other.tokenizer, cell.tokenizer) or other.tokenizer == cell.tokenizer
        )
        return next(equal)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        lists = {part: {name: list(values) for name, values in getattr(self, part).items()} for part in ("vary", "tune")}
        return {**asdict(self), **lists}


def described(settings: Sequence[tuple[str, str]]) -> str:
    """Settings in a few words: "lr 1e-3, num_context 16"."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in settings)


def settings_of(cell: Cell, seed: int, recipe: str, overrides: Sequence[str] = ()) -> PretrainSettings:
    """The settings of one run. Options of the objective that the recipe has and this objective has not are left out.

    Raises:
        SettingsError: A name or value is not allowed.
    """
    changes = [*overrides, *(f"{name}={value}" for name, value in cell.varied), f"seed={seed}"]
    if cell.backbone:
        changes.append(f"backbone.name={cell.backbone}")
    if cell.tokenizer and is_saved(cell.tokenizer):
        changes.append(f"tokenizer.vocab_size={_vocab_size(cell.tokenizer)}")
    elif cell.tokenizer:
        check_features_name(cell.tokenizer)
        changes.append(f"tokenizer.features={cell.tokenizer}")
    settings = load_recipe(recipe, changes)
    if not cell.objective:
        return settings
    name, objective_options = parse_objective(cell.objective)
    parameters = options_of(OBJECTIVES.get(name))
    options = {name: value for name, value in settings.objective.options.items() if name in parameters}
    return settings.model_copy(update={"objective": ObjectiveSettings(name=name, options={**options, **objective_options})})


def parse_objective(text: str) -> tuple[str, dict[str, Any]]:
    """`zoomed_in[mask_ratio=0.75]` to its name and its options; several options have commas between them.

    Raises:
        SettingsError: There is no such objective, or the brackets hold no options.
    """
    name, bracket, rest = text.partition("[")
    if name not in OBJECTIVES:
        raise SettingsError(f"There is no objective called '{name}'. {nearest(name, OBJECTIVES)}")
    if bracket and not rest.endswith("]"):
        raise SettingsError(f"Options of an objective are given as {name}[option=value], not '{text}'.")
    return name, parse_options(rest.removesuffix("]").split(",")) if bracket else {}


def parse_vary(pairs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`key=v1,v2` to the values of every key; `lr` means `training.lr`. Commas inside brackets belong to a value.

    Raises:
        SettingsError: A pair has no values, or a key comes twice.
    """
    varied: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = f"training.{key}" if key in TrainingSettings.model_fields else key
        values = tuple(value.strip() for value in re.split(r",(?![^\[{]*[\]}])", text))
        if not equals or not key or not all(values):
            raise SettingsError(f"What is varied or tuned is given as key=value1,value2, not '{pair}'.")
        if key in varied:
            raise SettingsError(f"{key} is named twice. Name all its values at once: {key}={','.join([*varied[key], *values])}")
        varied[key] = values
    return varied


def _label(tokenizer: str) -> str:
    return Path(tokenizer).name if is_saved(tokenizer) else tokenizer


@cache
def _vocab_size(tokenizer: str) -> int:
    return load_tokenizer(tokenizer).vocab_size
