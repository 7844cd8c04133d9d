"""`mapet evaluate`: what a backbone is worth."""

from __future__ import annotations

from typing import Annotated

import typer

from mapet.cli.options import Device, MaxUnreadable, Run, Workers


def evaluate(
    protocols: Annotated[str, typer.Argument(metavar="PROTOCOLS", help="knn, linear, or both: knn,linear.")],
    run: Run,
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="Labelled images; by default those of the run.")] = None,
    pool: Annotated[str, typer.Option(help="How tokens become one vector: mean (of the patches), cls, or both.")] = "mean",
    preset: Annotated[str, typer.Option(help="Of the linear probe: cached (fast), or paper (augmented, as published).")] = "cached",
    epochs: Annotated[int, typer.Option(min=1, help="Of the linear probe.")] = 50,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
) -> None:
    """Judge a pre-trained backbone on labelled images, next to the same backbone at random initialisation."""
    from mapet.evaluation.evaluate import PROTOCOLS
    from mapet.evaluation.evaluate import evaluate as run_evaluation
    from mapet.runtime.device import choose_device
    from mapet.runtime.run_directory import RunDirectory

    options = {"linear": {"preset": preset, "epochs": epochs}}
    chosen = [PROTOCOLS.get(name)(pool=pool, **options.get(name, {})) for name in protocols.split(",")]
    results = run_evaluation(
        RunDirectory.existing(run),
        data,
        chosen,
        device=choose_device(device),
        workers=workers,
        max_unreadable=max_unreadable,
    )
    first = results[0]
    print(f"{first.data}: {first.train_images} training and {first.test_images} test images, {first.classes} classes")
    for result in results:
        print(result.line())
