"""Pre-training steps in one and in two processes: images a second, and the memory of weights and optimizer in each process.

    python benchmarks/parallel.py [--worlds 1,2] [--modes ddp,fsdp] [--out FILE.json]

Processes are connected by gloo and compute on the CPU with one thread each. The cases take turns within every round, each in fresh
processes, so that drift of the machine hits all alike. A step is that of `mapet pretrain`, optimizer included, on images in memory;
`--batch-size` is that of all processes, so that all cases do the same work. One process has no mode: nothing is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterable
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mapet.config.settings import PretrainSettings, parse_settings
from mapet.pretraining.pretrain import backbone_spec, build_objective
from mapet.pretraining.step import TrainingStep
from mapet.runtime.processes import barrier, process_group
from mapet.runtime.run_directory import describe_environment

VOCAB = 512


def settings_of(arguments: argparse.Namespace, mode: str) -> PretrainSettings:
    """Of MaPeT on small images."""
    return parse_settings(
        {
            "image_size": arguments.image_size,
            "backbone": {"name": arguments.model, "options": {"patch_size": 8, "init_values": 0.1, "num_classes": 0}},
            "objective": {"name": arguments.objective},
            "tokenizer": {"vocab_size": VOCAB},
            "training": {"steps": 1000, "batch_size": arguments.batch_size},
            "mechanics": {"device": "cpu", "parallel": mode},
        }
    )


def run_process(rank: int, world: int, mode: str, port: int, arguments: argparse.Namespace, results: Queue) -> None:
    """One process of a case: puts (rank, seconds of every step, bytes of weights, bytes of the optimizer's state)."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with process_group("cpu") as processes:
        settings = settings_of(arguments, mode)
        torch.manual_seed(0)
        objective = build_objective(settings, backbone_spec(settings).build())
        step = TrainingStep(objective, settings, torch.device("cpu"), processes)
        count = arguments.batch_size // world
        images = torch.randint(256, (count, 3, arguments.image_size, arguments.image_size), dtype=torch.uint8)
        ids = torch.randint(VOCAB, (count, objective.num_patches))
        seconds = []
        for number in range(arguments.warm_up + arguments.steps):
            barrier()
            began = time.perf_counter()
            step(images, ids if "tokens" in objective.needs else None, number, 1e-4)
            seconds.append(time.perf_counter() - began)
        state = [value for entry in step.optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        results.put((rank, seconds[arguments.warm_up :], size(objective.parameters()), size(state)))
        barrier()


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes that this process holds; of a sharded tensor, its own part."""
    parts: list[Any] = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def measure(world: int, mode: str, arguments: argparse.Namespace) -> tuple[float, int, int]:
    """Images a second of one case, and the most bytes of weights and of the optimizer's state that one process holds."""
    context = get_context("spawn")
    results: Any = context.Queue()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [context.Process(target=run_process, args=(rank, world, mode, port, arguments, results)) for rank in range(world)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=arguments.timeout) for _ in processes)
    for process in processes:
        process.join()
    seconds = statistics.median(max(each) for each in zip(*(entry[1] for entry in found), strict=True))
    return arguments.batch_size / seconds, max(entry[2] for entry in found), max(entry[3] for entry in found)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="1,2", help="numbers of processes")
    parser.add_argument("--modes", default="ddp,fsdp")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--objective", default="mapet")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="measured in every round")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one case")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    worlds, modes = [*map(int, arguments.worlds.split(","))], arguments.modes.split(",")
    cases = [(world, mode) for world in worlds for mode in (modes if world > 1 else modes[:1])]
    found: dict[tuple[int, str], list[tuple[float, int, int]]] = {case: [] for case in cases}
    for number in range(arguments.rounds):
        for case in cases:
            found[case].append(measure(*case, arguments))
            print(f"round {number + 1} {case}: {found[case][-1][0]:.1f} images/s", file=sys.stderr, flush=True)
    reference = [speed for speed, _, _ in found[cases[0]]]
    rows = [
        {
            "processes": world,
            "mode": mode if world > 1 else "alone",
            "images_per_second": statistics.median(speed for speed, _, _ in entries),
            "lowest": min(speed for speed, _, _ in entries),
            "highest": max(speed for speed, _, _ in entries),
            f"times_{cases[0][0]}": statistics.median(one[0] / other for one, other in zip(entries, reference, strict=True)),
            "weights_mib": entries[0][1] / 2**20,
            "optimizer_mib": entries[0][2] / 2**20,
        }
        for (world, mode), entries in found.items()
    ]
    print_table(rows, cases[0][0])
    if arguments.out:
        facts = {name: value for name, value in vars(arguments).items() if name not in ("out", "timeout")}
        arguments.out.write_text(
            json.dumps({"environment": describe_environment(), "settings": facts, "rows": rows}, indent=2) + "\n"
        )


def print_table(rows: list[dict[str, Any]], reference: int) -> None:
    """The results as Markdown."""
    print(f"\n| processes | mode | images/s | x of {reference} | weights, MiB a process | optimizer, MiB a process |")
    print("|---:|---|---:|---:|---:|---:|")
    for row in rows:
        spread = f"{row['images_per_second']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})"
        print(
            f"| {row['processes']} | {row['mode']} | {spread} | "
            f"{row[f'times_{reference}']:.2f} | {row['weights_mib']:.1f} | {row['optimizer_mib']:.1f} |"
        )


if __name__ == "__main__":
    main()
