"""What a pre-training step of every objective costs, forward and backward, at its default settings and relative to MIM.

    python benchmarks/objectives.py [--objectives mim,mapet] [--model vit_tiny_patch16_224] [--json FILE]

`mapet objectives` shows the figures that are written down in `objectives/costs.py`. How it is measured: `timing.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import (
    Step,
    cpu_peak_mebibytes,
    cuda_peak_mebibytes,
    pretraining_step,
    print_cpu_peak,
    summarise,
    time_interleaved,
)
from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.objectives import OBJECTIVES, create_objective
from mapet.runtime.device import choose_device
from mapet.runtime.progress import say
from mapet.runtime.run_directory import describe_environment

VOCAB = 8192
TEACHER = {"teacher": "vit_base_patch16_clip_224", "teacher_options": {"pretrained": False}}  # as large as the paper's


def make_step(name: str, arguments: argparse.Namespace, device: torch.device) -> tuple[Step, float]:
    """A function that does one forward and backward pass, and how many rows an image is."""
    torch.manual_seed(0)
    backbone = create_backbone(arguments.model, init_values=0.1, num_classes=0)
    options = TEACHER if "teacher" in OBJECTIVES.get(name).needs else {}
    objective = create_objective(name, backbone=backbone, vocab_size=VOCAB, **options).to(device).train()
    images = torch.randn(arguments.batch_size, 3, objective.view_size, objective.view_size, device=device)
    ids = torch.randint(VOCAB, (arguments.batch_size, objective.num_patches), device=device)
    return pretraining_step(objective, Batch(images, ids), arguments.precision), objective.sequence_length


def measure(names: list[str], arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    """Rows of the table, objectives interleaved; peak memory one after the other."""
    made = {name: make_step(name, arguments, device) for name in names}
    say(f"{arguments.rounds} rounds of {', '.join(names)}")
    times = time_interleaved({name: step for name, (step, _) in made.items()}, arguments.batch_size, arguments.rounds, device)
    rows = []
    for name, figures in summarise(times, "mim").items():
        step, encoded = made[name]
        if device.type == "cuda":
            peak = cuda_peak_mebibytes(step, device)
        else:
            peak = cpu_peak_mebibytes(__file__, "--peak", name, *shared_words(arguments))
        peaks = {"peak_mib_per_image": peak / arguments.batch_size}
        rows.append({"objective": name, "rows_per_image": encoded, **figures, **peaks})
    return rows


def shared_words(arguments: argparse.Namespace) -> list[str]:
    """The command line of a process that measures the same."""
    return [
        *("--model", arguments.model),
        *("--precision", arguments.precision),
        *("--batch-size", str(arguments.batch_size)),
    ]


def print_table(rows: list[dict]) -> None:
    """The results as Markdown, and what of them belongs into `objectives/costs.py`."""
    print("\n| objective | rows/image | ms/image | x MIM | peak MiB/image |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        figures = f"{row['ms_per_image']:.1f} | {row['times_mim']:.2f} | {row['peak_mib_per_image']:.1f}"
        print(f"| {row['objective']} | {row['rows_per_image']:g} | {figures} |")
    print("\n" + json.dumps({row["objective"]: round(row["times_mim"], 2) for row in rows}))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES), help="names, with mim among them")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if arguments.peak:
        print_cpu_peak(make_step(arguments.peak, arguments, device)[0])
        return
    rows = measure(arguments.objectives.split(","), arguments, device)
    print_table(rows)
    if arguments.json:
        facts = {"environment": describe_environment(), "model": arguments.model, "precision": arguments.precision}
        arguments.json.write_text(json.dumps({**facts, "batch_size": arguments.batch_size, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
