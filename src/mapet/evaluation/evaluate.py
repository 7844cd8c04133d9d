"""Judges the backbone of a run, always next to the same backbone at its random initialisation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mapet.data.loader import UnreadableImages
from mapet.data.sources import open_splits
from mapet.evaluation.protocol import Protocol, Result
from mapet.evaluation.subject import Subject, check_labels
from mapet.models.saved import load_backbone
from mapet.registry import Registry
from mapet.runtime.files import write_json
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory

PROTOCOLS: Registry[type[Protocol]] = Registry(
    "protocol", {"knn": "mapet.evaluation.knn:KNN", "linear": "mapet.evaluation.linear:LinearProbe"}
)


def evaluate(
    run: RunDirectory,
    data: str | None,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    workers: int = 0,
    max_unreadable: int = 0,
) -> list[Result]:
    """Judges the backbone of `run` by every protocol and keeps the results in the run directory.

    Args:
        run: A finished pre-training.
        data: Labelled images; by default those of the pre-training.
        protocols: What to measure; features are extracted once for all of them.
        device: Where to compute.
        workers: Processes that decode images.
        max_unreadable: Images that may be skipped.

    Raises:
        MapetError: There is no backbone, or the images have no labels.
    """
    trained, recipe = load_backbone(run.backbone)
    location: str = data or run.read_config()["data"]
    train, test = open_splits(location)
    check_labels(train)
    check_labels(test)
    unreadable = UnreadableImages(max_unreadable)
    common: dict[str, Any] = {"device": device, "workers": workers, "unreadable": unreadable}
    subjects = [
        Subject("pre-trained", trained, recipe, train, test, **common),
        Subject("random", recipe.build(), recipe, train, test, **common),
    ]
    results = [_judge(protocol, location, *subjects) for protocol in protocols]
    for result in results:
        write_json(run.evaluations / result.file_name, asdict(result))
    if unreadable.summary():
        say(unreadable.summary())
    return results


def _judge(protocol: Protocol, data: str, trained: Subject, random: Subject) -> Result:
    began = time.perf_counter()
    top1, random_top1 = protocol.accuracy(trained), protocol.accuracy(random)
    return Result(
        protocol=protocol.describe(),
        protocol_hash=protocol.hash,
        data=data,
        classes=trained.num_classes,
        train_images=len(trained.train),
        test_images=len(trained.test),
        top1=top1,
        random_top1=random_top1,
        seconds=time.perf_counter() - began,
    )
