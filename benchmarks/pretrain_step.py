"""Cost of a pre-training step, forward and backward: MIM, PIM, MaPeT, and MaPeT the naive dense way.

    python benchmarks/pretrain_step.py [--sizes tiny,small,base] [--out FILE.json]

How it is measured: `timing.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.dense_two_stream import dense_loss
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
from mapet.objectives import create_objective
from mapet.runtime.device import choose_device
from mapet.runtime.run_directory import describe_environment

METHODS = ("mim", "pim", "mapet", "dense")
CONTEXT = {"tiny": 49, "small": 49, "base": 59}
VOCAB = 8192


def make_step(method: str, size: str, precision: str, batch_size: int, device: torch.device) -> tuple[Step, int]:
    """A function that does one forward and backward pass, and how many rows an image is."""
    torch.manual_seed(0)
    backbone = create_backbone(f"vit_{size}_patch16_224", init_values=0.1, num_classes=0)
    name = "mapet" if method == "dense" else method
    objective = create_objective(name, backbone=backbone, vocab_size=VOCAB, num_context=CONTEXT[size]).to(device).train()
    ids = torch.randint(VOCAB, (batch_size, objective.num_patches), device=device)
    batch = Batch(torch.randn(batch_size, 3, 224, 224, device=device), ids)
    dense = (lambda batch, corruption: dense_loss(objective, batch, corruption.permutation)) if method == "dense" else None
    return pretraining_step(objective, batch, precision, dense), int(objective.sequence_length)


def time_methods(size: str, precision: str, batch_size: int, rounds: int, device: torch.device) -> list[dict]:
    """Median milliseconds per image of every method, interleaved."""
    made = {method: make_step(method, size, precision, batch_size, device) for method in METHODS}
    times = time_interleaved({method: step for method, (step, _) in made.items()}, batch_size, rounds, device)
    facts = {"size": size, "precision": precision, "batch_size": batch_size}
    return [
        {**facts, "method": method, "rows_per_image": made[method][1], **figures}
        for method, figures in summarise(times, "mim").items()
    ]


def peak_mebibytes(method: str, size: str, precision: str, batch_size: int, device: torch.device) -> float:
    """What one step adds to the memory in use."""
    if device.type != "cuda":
        return cpu_peak_mebibytes(__file__, "--peak", method, size, precision, str(batch_size))
    return cuda_peak_mebibytes(make_step(method, size, precision, batch_size, device)[0], device)


def print_table(rows: list[dict]) -> None:
    """The results as Markdown."""
    print("\n| size | precision | method | rows/image | ms/image | images/s | x MIM | peak MiB/image |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['size']} | {row['precision']} | {row['method']} | {row['rows_per_image']} | {row['ms_per_image']:.2f} | "
            f"{row['images_per_second']:.1f} | {row['times_mim']:.2f} | {row['peak_mib_per_image']:.1f} |"
        )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", help="comma-separated: tiny, small, base (default: all on a GPU, tiny on a CPU)")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batch-size", type=int, help="default: 64 on a GPU, 8 on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_cpu_peak(make_step(*arguments.peak[:3], int(arguments.peak[3]), torch.device("cpu"))[0])
        return
    device = choose_device(arguments.device)
    on_gpu = device.type == "cuda"
    batch_size = arguments.batch_size or (64 if on_gpu else 8)
    sizes = (arguments.sizes or ("tiny,small,base" if on_gpu else "tiny")).split(",")
    rows = []
    for size in sizes:
        for precision in arguments.precisions.split(","):
            print(f"{size} {precision}", file=sys.stderr, flush=True)
            timed = time_methods(size, precision, batch_size, arguments.rounds, device)
            for row in timed:
                peak = peak_mebibytes(row["method"], size, precision, batch_size, device)
                rows.append({**row, "peak_mib_per_image": peak / batch_size})
    print_table(rows)
    if arguments.out:
        arguments.out.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
