"""The main job on data that comes along: pre-train, evaluate, report."""

from __future__ import annotations

import time
from pathlib import Path

from mapet.config import load_recipe
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.probes.linear import LinearProbe
from mapet.pretraining.pretrain import pretrain
from mapet.report.html import write_report
from mapet.runtime.device import choose_device
from mapet.runtime.progress import format_seconds, say


def run_demo(out: Path, device: str = "cpu") -> Path:
    """Tokenises scikit-learn's handwritten digits, pre-trains MaPeT on them, evaluates the backbone, writes a report.

    Args:
        out: Run directory.
        device: As `choose_device` takes it.

    Returns:
        The report.
    """
    began = time.monotonic()
    say("1/3  Pre-training a small ViT on 1,437 handwritten digits, without their labels")
    run = pretrain("digits", load_recipe("digits", [f"mechanics.device={device}"]), out)
    say("2/3  Evaluating it on 360 others, next to the same ViT at random initialisation")
    for result in evaluate(run, None, [KNN(), LinearProbe()], device=choose_device(device)):
        say(result.line())
    say("3/3  Drawing the report")
    report = write_report([run])
    say(f"Done in {format_seconds(time.monotonic() - began)}.")
    return report
