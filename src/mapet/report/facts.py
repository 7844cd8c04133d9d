"""What runs were: facts, settings and environments, side by side; of many runs, what they share is shown once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mapet.report import page
from mapet.report.reading import ReportedRun, flat
from mapet.runtime.progress import format_seconds

FEW = 3  # runs that stand side by side as columns of a table


def facts_table(runs: Sequence[ReportedRun]) -> str:
    """What was run, on what, for how long."""
    return _side_by_side(runs, [_facts(run) for run in runs], marks=False)


def settings_tables(runs: Sequence[ReportedRun]) -> str:
    """Science and mechanics."""
    several = " Rows that differ between the runs are marked." if 1 < len(runs) <= FEW else ""
    return "".join(
        [
            page.heading("Science: what changes the result", 3),
            page.text(f"Hashed; a run is only continued with the same.{several}"),
            _side_by_side(runs, [_written(run.science) for run in runs]),
            page.heading("Mechanics: how the work is done", 3),
            _side_by_side(runs, [_written(run.mechanics) for run in runs]),
        ]
    )


def environment_tables(runs: Sequence[ReportedRun]) -> str:
    """Every start of a run; of many runs, the last start of each."""
    missing = [
        page.left_out(f"{run.run.environment} is missing; `mapet pretrain` writes it at every start.")
        for run in runs
        if not run.environments
    ]
    recorded = [run for run in runs if run.environments]
    if len(runs) <= FEW:
        return "".join([*missing, *map(_starts_table, recorded)])
    latest = [{"starts": str(len(run.environments)), **_written(flat(run.environments[-1]))} for run in recorded]
    return "".join([*missing, page.text("The last start of each run."), _side_by_side(recorded, latest)])


def _facts(run: ReportedRun) -> dict[str, str]:
    latest = run.environments[-1] if run.environments else {}
    gpus = ", ".join(latest.get("gpus", []))
    machine = f"{latest.get('processor', 'unknown')}, {latest.get('cores', '?')} cores" + (f", {gpus}" if gpus else "")
    return {
        "Objective": f"{run.objective_title} {_pairs(run, 'objective.options.')}".strip(),
        "Backbone": f"{run.science.get('backbone.name', 'unknown')} {_pairs(run, 'backbone.options.')}".strip(),
        "Data": run.data,
        "Steps": f"{run.steps:,}" + ("" if run.run.backbone.is_dir() else " (not finished)"),
        "Images seen": f"{run.images_seen:,}",
        "Training time": format_seconds(run.training_seconds),
        "Science hash": str(run.config.get("science_hash", "unknown")),
        "Commit": str(latest.get("commit") or "unknown"),
        "Hardware": machine if latest else "unknown",
        "Command": str(latest.get("command", "unknown")),
    }


def _side_by_side(runs: Sequence[ReportedRun], columns: Sequence[Mapping[str, str]], marks: bool = True) -> str:
    """A table with a column a run; of many runs one of what they share and one, a row a run, of what differs."""
    titles = [run.title for run in runs]
    names = list(dict.fromkeys(name for values in columns for name in values))
    rows = {name: [values.get(name, "not set") for values in columns] for name in names}
    differing = [name for name in names if len({*rows[name]}) > 1]
    if len(runs) <= FEW:
        return page.table(["", *titles], [[name, *rows[name]] for name in names], differing if marks else ())
    shared = [[name, rows[name][0]] for name in names if name not in differing]
    return (page.table(["", f"all {len(runs)} runs"], shared) if shared else "") + (
        page.table(["", *differing], [[title, *(rows[name][at] for name in differing)] for at, title in enumerate(titles)])
        if differing
        else ""
    )


def _starts_table(run: ReportedRun) -> str:
    starts = [f"Start {number}" if len(run.environments) > 1 else run.title for number in range(1, len(run.environments) + 1)]
    described = [_written(flat(environment)) for environment in run.environments]
    names = list(dict.fromkeys(name for values in described for name in values))
    rows = [[name, *(values.get(name, "null") for values in described)] for name in names]
    title = page.heading(run.title, 3) if len(run.environments) > 1 else ""
    return title + page.table(["", *starts], rows, [name for name, *values in rows if len(set(values)) > 1 and name != "time"])


def _pairs(run: ReportedRun, prefix: str) -> str:
    pairs = [f"{name.removeprefix(prefix)} {_value(value)}" for name, value in run.science.items() if name.startswith(prefix)]
    return f"({', '.join(pairs)})" if pairs else ""


def _written(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _value(value) for name, value in values.items()}


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
