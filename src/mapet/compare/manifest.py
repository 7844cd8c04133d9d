"""comparison.json: what a comparison was begun with. The same command goes on with it. It may grow; nothing in it may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapet.compare.grid import Cell, Grid, settings_of
from mapet.config.settings import PretrainSettings, hash_of_science
from mapet.data.sources import absolute_location
from mapet.errors import CheckpointError, SettingsError
from mapet.report.reading import flat
from mapet.runtime.files import write_json
from mapet.runtime.json_files import read_json
from mapet.runtime.run_directory import RunDirectory

# What a grid may vary, by the name of its part.
_VARIED = {"objectives": ("objective",), "tokenizers": ("tokenizer",), "backbones": ("backbone",)}


class Manifest:
    """What is compared, on what, and how long each cell is trained.

    Args:
        out: The folder of the comparison.
        data: The images.
        recipe: A name or a YAML file.
        overrides: As `--set` takes them, for all runs.
        grid: What is compared.
        protocols: Names, as `mapet evaluate` takes them, with their hashes.
        budget: "steps", "rows" or "seconds".

    Attributes:
        steps: Of every cell whose budget is not the steps of the recipe, by its name.
        chosen: Of every cell that is tuned, the same with the values that it chose.
    """

    def __init__(
        self,
        out: Path,
        data: str,
        recipe: str,
        overrides: Sequence[str],
        grid: Grid,
        protocols: Mapping[str, str],
        budget: str = "steps",
    ) -> None:
        self.out, self.data, self.recipe, self.overrides = Path(out), data, recipe, [*overrides]
        self.grid, self.protocols, self.budget = grid, dict(protocols), budget
        self.steps: dict[str, int] = {}
        self.chosen_trials: dict[Cell, Cell] = {}

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self.out / "comparison.json"

    def settings(self, cell: Cell, seed: int) -> PretrainSettings:
        """Of one run."""
        return self.trial_settings(cell, self.chosen_trials.get(cell, cell), seed)

    def trial_settings(self, cell: Cell, trial: Cell, seed: int) -> PretrainSettings:
        """Of a run of `cell` with the settings that `trial` adds to it."""
        changes = [f"training.steps={self.steps[cell.name]}"] if cell.name in self.steps else []
        return settings_of(trial, seed, self.recipe, [*self.overrides, *changes])

    def run(self, cell: Cell, seed: int) -> RunDirectory:
        """The directory of one run; other values that are chosen make another run."""
        return RunDirectory(self.out / "runs" / f"{self.chosen_trials.get(cell, cell).name}-seed{seed}")

    def is_tuned(self, cell: Cell) -> bool:
        """Whether everything that the cell was to choose is chosen."""
        return not self.grid.tune or cell in self.chosen_trials

    def begin(self) -> None:
        """Writes it, or compares it with what the folder was begun with. Cells, seeds and protocols may be added.

        Raises:
            SettingsError: The folder holds another comparison.
            CheckpointError: comparison.json is damaged.
        """
        mine = self._record()
        if self.path.is_file():
            before = read_json(self.path, dict)
            common = before.get("common")
            if not isinstance(common, dict):
                raise CheckpointError(f"{self.path} is damaged: it has no 'common'. Bring the file back, or give another --out.")
            expected = {**common, **{name: before.get(name) for name in ("data", "budget")}}
            now = {**mine["common"], **{name: mine[name] for name in ("data", "budget")}}
            for name in sorted(expected.keys() & now.keys()):
                if expected[name] != now[name]:
                    raise SettingsError(
                        f"{self.out} holds a comparison whose {name} is {expected[name]!r}; now it is {now[name]!r}. Give "
                        "another --out, or the same command as before."
                    )
            self.steps = _steps(before, self.path) | self.steps
            mine["steps"] = self.steps
        write_json(self.path, mine)

    def fix_steps(self, steps: Mapping[str, int]) -> None:
        """Records how many steps each cell takes; those that were recorded before stay."""
        self.steps = {**steps, **self.steps}
        write_json(self.path, self._record())

    def check_equal(self) -> None:
        """Refuses settings that differ in anything but what the grid varies.

        Raises:
            SettingsError: Names the setting.
        """
        first, *others = self.grid.cells or self.grid.token_cells
        expected = self._common(self.settings(first, 0))
        for cell in others:
            science = self._common(self.settings(cell, 0))
            differing = sorted(name for name in {*expected, *science} if expected.get(name) != science.get(name))
            if differing:
                raise SettingsError(
                    f"{cell.title(self.grid)} differs from {first.title(self.grid)} in {differing[0]}, which the grid does not "
                    "vary. Vary it with --vary, or set it for all with --set."
                )

    def common_hash(self, config: Mapping[str, Any]) -> str:
        """Sixteen hex digits for what must be equal in all runs: the science without what is varied, and the images in their order.

        Args:
            config: What a run was begun with.
        """
        common = {name: value for name, value in flat(config.get("science", {})).items() if not self._is_varied(name)}
        return hash_of_science({**common, "images": config.get("images")})

    def _common(self, settings: PretrainSettings) -> dict[str, Any]:
        return {name: value for name, value in flat(settings.science).items() if not self._is_varied(name)}

    def _is_varied(self, name: str) -> bool:
        parts = [prefix for part, prefixes in _VARIED.items() if len(getattr(self.grid, part)) > 1 for prefix in prefixes]
        steps = ["training.steps", "training.epochs"] if self.budget != "steps" else []
        varied = ["seed", *parts, *steps, *self.grid.vary, *self.grid.tune]
        return any(name == setting or name.startswith(f"{setting}.") for setting in varied)

    def _record(self) -> dict[str, Any]:
        return {
            "data": absolute_location(self.data),
            "recipe": self.recipe,
            "set": self.overrides,
            "budget": self.budget,
            "grid": self.grid.describe(),
            "common": self._common(settings_of((self.grid.cells or self.grid.token_cells)[0], 0, self.recipe, self.overrides)),
            "protocols": self.protocols,
            "steps": self.steps,
        }


def _steps(before: Mapping[str, Any], path: Path) -> dict[str, int]:
    steps = before.get("steps", {})
    if not isinstance(steps, dict) or not all(isinstance(count, int) and count > 0 for count in steps.values()):
        raise CheckpointError(f"{path} is damaged: 'steps' is {steps!r:.80}. Bring the file back, or give another --out.")
    return steps
