"""Cost of a pre-training step, forward and backward: MIM, PIM, MaPeT, and MaPeT the naive dense way.

    python benchmarks/pretrain_step.py [--sizes tiny,small,base] [--out FILE.json]

Methods take turns within every round, so that drift of the machine hits all alike; quote the ratios. Peak memory is what one step
adds to the model: on CUDA as the allocator counts it, on a CPU as resident memory of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.dense_two_stream import dense_loss
from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.objectives import create_objective
from mapet.runtime.device import autocast, choose_device
from mapet.runtime.run_directory import describe_environment

METHODS = ("mim", "pim", "mapet", "dense")
CONTEXT = {"tiny": 49, "small": 49, "base": 59}
VOCAB = 8192
Step = Callable[[], Tensor]


def make_step(method: str, size: str, precision: str, batch_size: int, device: torch.device) -> tuple[Step, int]:
    """A function that does one forward and backward pass, and how many rows an image is."""
    torch.manual_seed(0)
    backbone = create_backbone(f"vit_{size}_patch16_224", init_values=0.1, num_classes=0)
    name = "mapet" if method == "dense" else method
    objective = create_objective(name, backbone=backbone, vocab_size=VOCAB, num_context=CONTEXT[size]).to(device).train()
    ids = torch.randint(VOCAB, (batch_size, objective.num_patches), device=device)
    batch = Batch(torch.randn(batch_size, 3, 224, 224, device=device), ids)
    generator = torch.Generator(device=device).manual_seed(0)

    def step() -> Tensor:
        corruption = objective.corrupt(batch, generator)
        with autocast(device, precision):
            if method == "dense":
                loss = dense_loss(objective, batch, corruption.permutation)
            else:
                loss = objective(batch, corruption).loss_sum
        loss.backward()
        objective.zero_grad(set_to_none=True)
        return loss.detach()

    streams = {"mim": 0, "pim": 1, "mapet": 2, "dense": 2}[method]
    return step, 1 + objective.num_patches + streams * objective.num_targets


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_methods(size: str, precision: str, batch_size: int, rounds: int, device: torch.device) -> list[dict]:
    """Median milliseconds per image of every method, interleaved."""
    steps = {method: make_step(method, size, precision, batch_size, device) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for round_ in range(rounds + 1):
        for method, (step, _) in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            if round_ > 0:
                times[method].append((time.perf_counter() - start) / batch_size)
    ratios = {m: statistics.median(a / b for a, b in zip(times[m], times["mim"], strict=True)) for m in METHODS}
    return [
        {
            "size": size,
            "precision": precision,
            "method": method,
            "rows_per_image": steps[method][1],
            "ms_per_image": 1000 * statistics.median(times[method]),
            "images_per_second": 1 / statistics.median(times[method]),
            "times_mim": ratios[method],
            "batch_size": batch_size,
        }
        for method in METHODS
    ]


def peak_mebibytes(method: str, size: str, precision: str, batch_size: int, device: torch.device) -> float:
    """What one step adds to the memory in use."""
    if device.type != "cuda":
        command = [sys.executable, __file__, "--peak", method, size, precision, str(batch_size)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    step, _ = make_step(method, size, precision, batch_size, device)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def print_cpu_peak(method: str, size: str, precision: str, batch_size: int) -> None:
    """For the fresh process: how far one step raises the high-water mark of resident memory."""
    step, _ = make_step(method, size, precision, batch_size, torch.device("cpu"))
    before = high_water_mebibytes()
    step()
    print(high_water_mebibytes() - before)


def high_water_mebibytes() -> float:
    """Most resident memory of this process so far (Linux; getrusage would count the parent's from before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


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
        print_cpu_peak(*arguments.peak[:3], int(arguments.peak[3]))
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
