"""Time and memory of steps that are to be compared.

Steps take turns within every round, so that drift of the machine hits all alike; quote the ratios. Peak memory is what one step
adds to the model: on CUDA as the allocator counts it, on a CPU as resident memory of a fresh process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.data.batch import Batch
from mapet.objectives import Objective
from mapet.runtime.device import autocast

Step = Callable[[], Tensor]


def pretraining_step(
    objective: Objective,
    batch: Batch,
    precision: str = "fp32",
    loss_sum: Callable[[Batch, Any], Tensor] | None = None,
) -> Step:
    """A function that corrupts the batch and does one forward and backward pass; the optimizer is left out.

    Args:
        objective: On the device of the batch.
        batch: The same in every step.
        precision: fp32 or bf16.
        loss_sum: How to compute the loss of a batch and a corruption, if not by calling the objective.
    """
    device = batch.images.device
    generator = torch.Generator(device=device).manual_seed(0)

    def step() -> Tensor:
        corruption = objective.corrupt(batch, generator)
        with autocast(device, precision):
            loss = objective(batch, corruption).loss_sum if loss_sum is None else loss_sum(batch, corruption)
        loss.backward()
        objective.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def time_interleaved(steps: Mapping[str, Step], images: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per image of every step in every round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            if round_ > 0:
                times[name].append((time.perf_counter() - start) / images)
    return times


def summarise(times: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Of every step: medians, and the median over rounds of its time relative to the reference."""
    return {
        name: {
            "ms_per_image": 1000 * statistics.median(own),
            "images_per_second": 1 / statistics.median(own),
            f"times_{reference}": statistics.median(one / other for one, other in zip(own, times[reference], strict=True)),
        }
        for name, own in times.items()
    }


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cuda_peak_mebibytes(step: Step, device: torch.device) -> float:
    """What a step adds to the memory in use, as the allocator counts it."""
    step()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def cpu_peak_mebibytes(program: str, *words: str) -> float:
    """What `python PROGRAM WORDS`, a fresh process, prints with `print_cpu_peak`."""
    command = [sys.executable, program, *words]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_cpu_peak(step: Step) -> None:
    """How far one step raises the high-water mark of resident memory, which is first brought down to what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mebibytes()
    step()
    print(high_water_mebibytes() - before)


def high_water_mebibytes() -> float:
    """Most resident memory of this process so far (Linux; getrusage would count the parent's from before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
