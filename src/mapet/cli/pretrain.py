"""`mapet pretrain`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Allow, Data


def pretrain(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run directory; an existing one is continued exactly.")],
    recipe: Annotated[str, typer.Option(help="A name from `mapet recipes`, or a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.lr=1e-3; repeatable.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A fitted tokenizer; by default the run fits its own.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="A token store; by default the run makes its own.")] = None,
    probe_every: Annotated[
        float | None,
        typer.Option(help="Epochs between online probes (k-NN, linear) on a part of the training images; needs labels."),
    ] = None,
    monitor: Annotated[
        list[str] | None, typer.Option(help="Also log to wandb, mlflow, trackio or comet, through its own library; repeatable.")
    ] = None,
    max_unreadable: Annotated[int | None, typer.Option(min=0, help="Unreadable images that may be skipped (0).")] = None,
    allow: Allow = None,
) -> None:
    """Pre-train a backbone on the images in DATA.

    Fits a tokenizer and tokenises first where nothing is there yet. The same command continues an interrupted run exactly.
    """
    from mapet.config import load_recipe
    from mapet.objectives import OBJECTIVES

    overrides = [*(set_ or [])]
    if max_unreadable is not None:
        overrides.append(f"mechanics.max_unreadable={max_unreadable}")
    if probe_every is not None:
        overrides.append(f"mechanics.probe_every={probe_every}")
    settings = load_recipe(recipe, overrides)  # before torch is imported, which takes seconds
    OBJECTIVES.require(settings.objective.name)

    from mapet.engine.warnings import read_warnings, standing_warnings, warnings_file
    from mapet.pretraining.pretrain import pretrain as run_pretraining
    from mapet.runtime.rank import this_process_is_first

    monitors = []
    if settings.mechanics.probe_every is not None:
        from mapet.evaluation.online import OnlineProbe

        monitors.append(OnlineProbe(settings))
    if monitor:
        from mapet.engine.trackers import TRACKERS
        from mapet.report.reading import flat

        monitors += [TRACKERS.create(name, flat(settings.science)) for name in dict.fromkeys(monitor)]
    run = run_pretraining(data, settings, out, tokenizer=tokenizer, tokens=tokens, monitors=monitors)
    if not this_process_is_first():
        return
    if standing := standing_warnings(read_warnings(run)):
        print(f"Warnings: {len(standing)} that still hold, in {warnings_file(run)}")
    print(f"Backbone: {run.backbone}")
    print(f"Next: mapet evaluate knn,linear {run.path}    mapet report {run.path}")
