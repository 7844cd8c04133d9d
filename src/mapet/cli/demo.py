"""`mapet demo`: the main job on data that comes along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
) -> None:
    """Tokenise scikit-learn's handwritten digits, pre-train MaPeT on them, evaluate the backbone, write a report."""
    from mapet.workflows.demo import run_demo

    print(f"Report: {run_demo(out, device)}")
    print("Your own images: mapet pretrain FOLDER --recipe folder_tiny --out RUN")
