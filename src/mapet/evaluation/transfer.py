"""Transfer (MaPeT, Table 5): one backbone, one protocol, several data sets, each with the metric that is its convention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mapet.data.named_sets import NAMED_SETS, named_location, open_named
from mapet.data.sources import SOURCES
from mapet.errors import SettingsError, nearest
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.intervals import describe as describe_gain
from mapet.evaluation.protocol import METRICS, Evaluable, Protocol, Result


def transfer_locations(names: Sequence[str], root: str | Path | None, *, download: bool = False) -> dict[str, str]:
    """Name to location of every data set, all of which are there.

    Args:
        names: Of NAMED_SETS, or locations of other labelled images (an image folder).
        root: Where named sets lie.
        download: Fetch those that are missing and can be fetched.

    Raises:
        SettingsError: A named set without a root, or a name that is neither.
        DataError: A named set is not there; the message has its layout and its source.
    """
    locations = {}
    for name in dict.fromkeys(names):
        if name not in NAMED_SETS:
            if not name or (":" not in name and name not in SOURCES and not Path(name).exists()):
                raise SettingsError(f"There is no data set and no folder '{name}'. {nearest(name, NAMED_SETS)}")
            locations[name] = name
            continue
        if root is None:
            raise SettingsError(f"Where does {NAMED_SETS[name].title} lie? Give its folder with --root, or write {name}:FOLDER.")
        locations[name] = named_location(name, root)
        open_named(locations[name], download=download)
    return locations


def evaluate_transfer(
    loaded: Evaluable,
    locations: dict[str, str],
    protocol: Protocol,
    *,
    device: torch.device,
    folder: Path | None = None,
    workers: int = 0,
    max_unreadable: int = 0,
    with_random: bool | None = None,
) -> dict[str, Result]:
    """Evaluates a backbone, or what else the protocol takes, on several data sets.

    Args:
        loaded: What the protocol takes.
        locations: Name to location, as `transfer_locations` gives them.
        protocol: Table 5 uses the paper's linear probe (`linear:paper`).
        device: Where to compute.
        folder: Where results are kept; by default in the run directory, and nowhere if there is none.
        workers: Processes that decode images.
        max_unreadable: Images of each set that may be skipped.
        with_random: Whether the random initialisation is evaluated too; by default as the protocol defines.

    Returns:
        Name to result; `Result.metric` is the convention of the data set.
    """
    options: dict[str, Any] = {"device": device, "folder": folder, "workers": workers, "max_unreadable": max_unreadable}
    return {
        name: evaluate(loaded, location, [protocol], with_random=with_random, **options)[0] for name, location in locations.items()
    }


def transfer_rows(results: dict[str, Result]) -> list[tuple[str, ...]]:
    """Head and rows of the table: data set, its metric, the figure, random initialisation, gain, top-1, classes, images."""
    rows = [("data set", "metric", "figure", "random", "gain", "top-1", "classes", "train", "test")]
    for name, result in results.items():
        random = "-" if result.random_value is None else _percent(result.random_value)
        gain = "-" if result.gain is None else describe_gain(result.gain, result.gain_interval)
        top1 = _percent(result.figures["top1"]) if "top1" in result.figures else "-"
        counts = (f"{result.classes:,}", f"{result.train_images:,}", f"{result.test_images:,}")
        rows.append((name, METRICS.get(result.metric, result.metric), _percent(result.value), random, gain, top1, *counts))
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
