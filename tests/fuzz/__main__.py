"""`./dev fuzz`: 20,000 damaged inputs for every reader, or as many as are asked for, with a table at the end."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import tests.conftest  # noqa: F401  (sets the environment before torch is imported)
from tests.fuzz.campaign import run
from tests.fuzz.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; by default all of them")
    parser.add_argument("--inputs", type=int, default=20_000, help="damaged inputs a reader (default 20000)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first input; the tests use 0 and up")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that end in a fault")
    options = parser.parse_intermixed_args()
    if unknown := {*options.readers} - {*READERS}:
        parser.error(f"there is no reader {', '.join(sorted(unknown))}; allowed: {', '.join(READERS)}")
    print(f"{'reader':22} {'inputs':>7} {'read':>7} {'refused':>8} {'faults':>7} {'slowest':>8} {'seconds':>8}")
    faults = 0
    for name in options.readers or READERS:
        reader, began = READERS[name], time.perf_counter()
        inputs = max(1, options.inputs * reader.inputs // 500)
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(
                reader, Path(folder) / "fuzz", range(options.seed, options.seed + inputs), options.keep / name.replace(" ", "-")
            )
        faults += len(outcome.faults)
        ends, seconds = outcome.ends, time.perf_counter() - began
        counts = f"{inputs:7,} {ends['read']:7,} {ends['refused']:8,} {len(outcome.faults):7,}"
        print(f"{name:22} {counts} {outcome.slowest:7.1f}s {seconds:8.0f}", flush=True)
        for seed, file, trace in outcome.faults[:3]:
            print(f"  seed {seed}, {file}\n{trace}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
