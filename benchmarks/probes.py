"""Cached against full: figures, ranking and time of every probe, for several backbones on the same images.

    python benchmarks/probes.py DATA BACKBONE BACKBONE ... [--images 5000] [--epochs 50] [--json FILE]

BACKBONE is what `mapet evaluate` takes; `--option img_size=32` and the like go to random:NAME and timm:NAME alone. The full probe
(`linear:paper`) is what the cached ones are compared with. The seconds of a probe hold everything that it needs by itself, features
included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mapet.checkpoints.address import RANDOM, TIMM, load_backbone
from mapet.config.recipes import parse_options
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, subset
from mapet.data.sources import open_splits
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.presets import protocols_of
from mapet.runtime.device import choose_device
from mapet.runtime.progress import say
from mapet.runtime.run_directory import describe_environment

FULL = "linear:paper"
OWN_VIEW = (FULL, "linear:paper_cached")  # these extract features of their own
CACHED = ("knn", "linear:paper_cached", "linear:cached", "linear:sweep", "logistic", "fewshot:1", "fewshot:10")


def first_images(source: ImageSource, count: int | None) -> ImageSource:
    return source if count is None else subset(source, range(min(count, len(source))))


def make_frozen(address: str, train: ImageSource, test: ImageSource, arguments: argparse.Namespace) -> FrozenBackbone:
    by_name = address.startswith((RANDOM, TIMM))
    loaded = load_backbone(address, options=parse_options(arguments.option or []) if by_name else None)
    common = {"device": choose_device(arguments.device), "workers": arguments.workers, "unreadable": UnreadableImages()}
    return FrozenBackbone(loaded.title, loaded.backbone, loaded.spec, train, test, **common)


def measure(address: str, train: ImageSource, test: ImageSource, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures and seconds of all probes on one backbone."""
    frozen = make_frozen(address, train, test, arguments)
    began = time.perf_counter()
    for shared in (frozen.train_features, frozen.test_features):
        say(f"{address}: features {tuple(shared.mean.shape)}")
    features = time.perf_counter() - began
    rows = {}
    full = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    pool = {"pool": "mean"}  # of the full probe, and so of all
    for title in [*CACHED, FULL]:
        (protocol,) = protocols_of([title], pool | (full if title in OWN_VIEW else {}))
        began = time.perf_counter()
        found = protocol.evaluate(frozen)
        alone = time.perf_counter() - began
        seconds = alone + (0.0 if title in OWN_VIEW else features)
        chosen = {name: found.details[name] for name in ("chosen", "l2", "deviation") if name in found.details}
        rows[title] = {**found.values, "seconds": seconds, "without_features": alone, "protocol": protocol.hash, **chosen}
        say(f"{address}: {title:14} top-1 {100 * found.values['top1']:5.1f} %  {seconds:.0f} s")
    return {"backbone": address, "features_seconds": features, "probes": rows}


def rank_agreement(one: list[float], other: list[float]) -> float:
    """Kendall's tau; -1 to 1."""
    return float(kendalltau(one, other).statistic)  # type: ignore[attr-defined]


def compare(backbones: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of every cached probe: agreement with the full one in rank, in figures and in time."""
    top = {title: [entry["probes"][title]["top1"] for entry in backbones] for title in [*CACHED, FULL]}
    seconds = {title: sum(entry["probes"][title]["seconds"] for entry in backbones) for title in top}
    return {
        title: {
            "kendall_tau": rank_agreement(top[title], top[FULL]) if len(backbones) > 1 else None,
            "same_order": sorted(range(len(backbones)), key=lambda i: top[title][i])
            == sorted(range(len(backbones)), key=lambda i: top[FULL][i]),
            "largest_difference": max(abs(one - other) for one, other in zip(top[title], top[FULL], strict=True)),
            "share_of_time": seconds[title] / seconds[FULL],
        }
        for title in CACHED
    }


def print_table(backbones: list[dict[str, Any]], comparison: dict[str, dict[str, float | None]]) -> None:
    """The results as Markdown."""
    names = [entry["backbone"] for entry in backbones]
    print("\n| probe | " + " | ".join(f"{name} top-1 % (s)" for name in names) + " | same order | share of time |")
    print("|---|" + "---:|" * (len(names) + 2))
    for title in [*CACHED, FULL]:
        cells = [f"{100 * entry['probes'][title]['top1']:.1f} ({entry['probes'][title]['seconds']:.0f})" for entry in backbones]
        agreed = comparison.get(title)
        last = f"{'yes' if agreed['same_order'] else 'no'} | {agreed['share_of_time']:.3f}" if agreed else "- | 1"
        print(f"| {title} | {' | '.join(cells)} | {last} |")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--images", type=int, help="the first so many training images")
    parser.add_argument("--test-images", type=int, help="the first so many test images")
    parser.add_argument("--epochs", type=int, help=f"of {' and '.join(OWN_VIEW)}; 50 by default")
    parser.add_argument("--option", action="append", help="KEY=VALUE for random:NAME and timm:NAME; repeatable")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    train, test = open_splits(arguments.data)
    parts = first_images(train, arguments.images), first_images(test, arguments.test_images)
    backbones = [measure(address, *parts, arguments) for address in arguments.backbones]
    comparison = compare(backbones)
    print_table(backbones, comparison)
    if arguments.json:
        sizes = {"train_images": len(parts[0]), "test_images": len(parts[1])}
        facts = {"environment": describe_environment(), **sizes, "backbones": backbones, "comparison": comparison}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
