"""What each objective's pre-training is worth on the same backbone, tokens, images, order and steps, over several seeds.

Judged by k-NN and linear probe, next to random initialisation.

    python benchmarks/compare.py DATA --recipe cifar10 --objectives mim,pim,mapet --seeds 2 --out DIR [--json FILE]

The first run fits the tokenizer and makes the tokens, all others use them. Interrupted comparisons continue where they stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from mapet.config import load_recipe
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.probes.linear import LinearProbe
from mapet.objectives import OBJECTIVES
from mapet.pretraining.pretrain import pretrain
from mapet.report.reading import open_runs
from mapet.runtime.device import choose_device
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory, describe_environment


def run_one(
    arguments: argparse.Namespace,
    name: str,
    seed: int,
    tokens: Path | None = None,
    extra: list[str] | None = None,
    with_random: bool = True,
) -> tuple[RunDirectory, list[dict]]:
    """The run called `name`, pre-trained with the settings `extra` and evaluated, as rows of the table.

    The random initialisation is a function of the seed alone: it is judged with the first run of a seed, and None in all others.
    """
    overrides = [*arguments.set, *(extra or []), f"seed={seed}", f"mechanics.device={arguments.device}"]
    run = pretrain(arguments.data, load_recipe(arguments.recipe, overrides), arguments.out / f"{name}-{seed}", tokens=tokens)
    protocols = [kind(pool=arguments.pool) for kind in (KNN, LinearProbe)]
    results = evaluate(run, None, protocols, device=choose_device(arguments.device), with_random=with_random)
    last = run.read_metrics()[-1]
    rows = [
        {
            "run": name,
            "seed": seed,
            "protocol": result.protocol["name"],
            "protocol_hash": result.protocol_hash,
            "top1": result.value,
            "random_top1": result.random_value,
            "steps": last["step"],
            "loss": last["loss"],
            "token_accuracy": last.get("token_accuracy", float("nan")),
            "training_seconds": open_runs([run])[0].training_seconds,
        }
        for result in results
    ]
    return run, rows


def spread(values: list[float]) -> str:
    """Mean and half the range, in percent."""
    return f"{100 * statistics.mean(values):.1f} +- {50 * (max(values) - min(values)):.1f}"


def print_table(rows: list[dict]) -> None:
    """One line an objective, random initialisation first."""
    protocols = sorted({row["protocol"] for row in rows})
    print(f"\n| | {' | '.join(protocols)} | loss | token accuracy | training |")
    print("|---|" + "---:|" * (len(protocols) + 3))
    known = [row for row in rows if row["random_top1"] is not None]
    random = [spread([row["random_top1"] for row in known if row["protocol"] == name]) for name in protocols]
    print(f"| random initialisation | {' | '.join(random)} | | | |")
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        figures = [spread([row["top1"] for row in own if row["protocol"] == name]) for name in protocols]
        loss, accuracy, seconds = (
            statistics.mean(row[key] for row in own) for key in ("loss", "token_accuracy", "training_seconds")
        )
        print(f"| {name} | {' | '.join(figures)} | {loss:.3f} | {100 * accuracy:.1f} % | {seconds:.0f} s |")


def parse(description: str | None, add: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """The options of a comparison, and those that `add` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pool", default="both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    add(parser)
    return parser.parse_args()


def conclude(arguments: argparse.Namespace, rows: list[dict], environment: dict, began: float) -> None:
    """Prints the table and writes the JSON file."""
    print_table(rows)
    seconds = time.perf_counter() - began
    print(f"\n{seconds / 60:.1f} minutes in all")
    if arguments.json:
        facts = {"environment": environment, "recipe": arguments.recipe, "set": arguments.set, "seconds": seconds}
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


def main() -> None:
    """Runs the comparison."""
    arguments = parse(__doc__, lambda parser: parser.add_argument("--objectives", default="mim,pim,mapet"))
    environment, began = describe_environment(), time.perf_counter()
    rows, tokens = [], None
    for seed in range(arguments.seeds):
        for objective in arguments.objectives.split(","):
            say(f"{objective}, seed {seed}")
            looks_up = "tokens" in OBJECTIVES.get(objective).needs
            first = not any(row["seed"] == seed for row in rows)
            name = [f"objective.name={objective}"]
            run, found = run_one(arguments, objective, seed, tokens if looks_up else None, name, with_random=first)
            tokens = tokens or (run.tokens if looks_up else None)
            rows += found
    conclude(arguments, rows, environment, began)


if __name__ == "__main__":
    main()
