"""Are tokens from a pre-trained backbone better to pre-train on than those of the first round? And than training for longer?

Round 1 pre-trains on the recipe's own tokens; every later round from scratch on k-means tokens over the features of the backbone
before it, all else equal. `longer` is round 1 with as many steps as all rounds together. Judged by k-NN and linear probe.

    python benchmarks/rounds.py DATA --recipe cifar10 --rounds 2 --seeds 2 --out DIR [--json FILE]

Interrupted comparisons continue where they stopped.
"""

from __future__ import annotations

import time

from benchmarks.compare import conclude, parse, run_one
from mapet.config import load_recipe
from mapet.runtime.progress import say
from mapet.runtime.run_directory import describe_environment


def main() -> None:
    """Runs the comparison."""
    arguments = parse(__doc__, lambda parser: parser.add_argument("--rounds", type=int, default=2))
    environment, began = describe_environment(), time.perf_counter()
    steps = load_recipe(arguments.recipe, arguments.set).training.steps
    if steps is None:
        raise SystemExit("Give a recipe with training.steps.")
    rows = []
    for seed in range(arguments.seeds):
        features: list[str] = []
        for number in range(1, arguments.rounds + 1):
            say(f"round {number}, seed {seed}")
            run, found = run_one(arguments, f"round-{number}", seed, extra=features)
            features = [f"tokenizer.features={run.path}", "tokenizer.options={}"]
            rows += found
        say(f"longer, seed {seed}")
        first = arguments.out / f"round-1-{seed}" / "tokens"
        rows += run_one(arguments, "longer", seed, first, [f"training.steps={arguments.rounds * steps}"])[1]
    conclude(arguments, rows, environment, began)


if __name__ == "__main__":
    main()
