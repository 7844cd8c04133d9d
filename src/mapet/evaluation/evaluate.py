"""Evaluates what a protocol takes: a backbone next to the same backbone at its random initialisation, a tokenizer, a classifier."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapet.checkpoints.address import load_backbone
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, subset
from mapet.data.sources import recorded_location
from mapet.errors import SettingsError
from mapet.evaluation.classes import lost_classes
from mapet.evaluation.copies import Copies, KeyedImages, count_copies
from mapet.evaluation.frozen_backbone import Evaluated
from mapet.evaluation.intervals import gain_intervals
from mapet.evaluation.outcomes import SUFFIX, save_outcomes
from mapet.evaluation.protocol import Evaluable, Metrics, Protocol, Result
from mapet.evaluation.validation_split import hold_out_rows
from mapet.models.weights import fingerprint
from mapet.runtime.files import write_json
from mapet.runtime.json_files import read_json
from mapet.runtime.processes import barrier, only_writers, process_group, require_agreement
from mapet.runtime.progress import say
from mapet.runtime.rank import this_process
from mapet.runtime.run_directory import RunDirectory, package_version


def evaluate(
    target: Evaluable | RunDirectory,
    data: str | None,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    folder: Path | None = None,
    workers: int = 0,
    max_unreadable: int = 0,
    with_random: bool | None = None,
    validation_share: float | None = None,
) -> list[Result]:
    """Evaluates by every protocol and keeps the results.

    Under torchrun, the processes share the images and the training; the first of them writes the results.

    Args:
        target: What the protocols take (a backbone, tokens, a classifier), or a finished pre-training.
        data: Labelled images; by default those of the pre-training.
        protocols: What to measure; features are extracted once for all of them.
        device: Where to compute.
        folder: Where results are kept; by default in the run directory, and nowhere if there is none.
        workers: Processes that decode images.
        max_unreadable: Images that may be skipped.
        validation_share: Of every class, this share of the training images takes the place of the test images, so that settings can
            be chosen without them.
        with_random: Whether the random initialisation is evaluated too; by default as each protocol defines.

    Raises:
        InUseError: Another process measures the same for the same folder.
        MapetError: There is no backbone, a protocol takes something else, or the images do not fit the protocol.
    """
    target = load_backbone(target.path) if isinstance(target, RunDirectory) else target
    folder = folder or (target.run.evaluations if target.run else None)
    _check_kind(target, protocols, with_random)
    location = data or _data_of_run(target)
    _check_folder(folder, protocols, target)
    if with_random and target.untrained:
        say(f"{target.title} is at its random initialisation itself, so that --random adds nothing.")
    unreadable = UnreadableImages(max_unreadable)
    name = location if validation_share is None else validation_name(location, validation_share)
    results, stems = [], [_stem(protocol, target, name) for protocol in protocols]
    outs = [folder / stem for stem in stems if folder is not None]
    with process_group(device) as processes, only_writers(outs, processes):
        work = {"device": processes.device(device), "workers": workers, "unreadable": unreadable}
        evaluator = _Evaluator(target, location, work, processes.rank == 0, validation_share)
        if folder is not None and not _fingerprint(target) and not (target.run and folder == target.run.evaluations):
            _refuse_others(folder, stems, target.title)
        for protocol, stem in zip(protocols, stems, strict=True):
            random = protocol.with_random if with_random is None else with_random
            result = evaluator.result(protocol, folder and folder / stem, random and not target.untrained)
            if folder is not None and processes.rank == 0:
                write_json(folder / f"{stem}.json", asdict(result))
            results.append(result)
        barrier()
    if unreadable.summary():
        say(unreadable.summary())
    return results


def validation_name(location: str, share: float) -> str:
    """What stands in place of the images in the name of a result on a share of the training images."""
    return f"{location} validation {share:g}"


def _stem(protocol: Protocol, target: Evaluable, location: str) -> str:
    """The name of a result: that of what has a fingerprint depends on it."""
    return protocol.stem(f"{location} {_fingerprint(target)}".rstrip())


def _fingerprint(target: Evaluable) -> str:
    return getattr(target, "fingerprint", "")


def _check_kind(target: Evaluable, protocols: Sequence[Protocol], with_random: bool | None) -> None:
    """Refuses a protocol that evaluates something else or works in one process, and a random initialisation of what has none."""
    world = this_process().world
    for protocol in protocols:
        if world > 1 and not protocol.several_processes:
            raise SettingsError(
                f"torchrun started {world} processes, but the protocol '{protocol.name}' works in one. Start it without torchrun."
            )
        if not isinstance(target, protocol.takes):
            raise SettingsError(
                f"The protocol '{protocol.name}' evaluates a {protocol.takes_a}, and {target.title} is none. Give it alone: "
                f"mapet evaluate {protocol.name} {protocol.takes_a.upper()} DATA"
            )
        if with_random and protocol.takes is not Protocol.takes:
            raise SettingsError(f"The protocol '{protocol.name}' has no random initialisation to compare with. Leave out --random.")


def _check_folder(folder: Path | None, protocols: Sequence[Protocol], target: Evaluable) -> None:
    """Refuses, before any work, a file in place of a folder, and a long training whose model nobody would keep."""
    if folder is not None and folder.is_file():
        raise SettingsError(f"--out {folder} is a file, and results are kept in a folder. Give another.")
    training = next((protocol for protocol in protocols if protocol.keeps_model), None)
    if folder is None and training is not None:
        raise SettingsError(
            f"{training.title} trains a model of its own, and {target.title} is no run directory that could keep it. "
            "Give --out FOLDER."
        )


def _refuse_others(folder: Path, stems: Sequence[str], title: str) -> None:
    """Refuses to write over the results of another backbone."""
    for path in (folder / f"{stem}.json" for stem in stems):
        if path.is_file() and (before := read_json(path).get("backbone")) != title:
            raise SettingsError(f"{path} is the result of {before}, not of {title}. Give another --out.")


def _data_of_run(target: Evaluable) -> str:
    if target.run is None:
        raise SettingsError(f"{target.title} was not pre-trained here, so that there are no images of its own. Give DATA.")
    return recorded_location(target.run.read_config().get("data"), target.run.config)


def describe_note(protocol: Protocol, train_images: int) -> str:
    """The line about training on so many images; "" where there is nothing to note."""
    note = protocol.note(train_images)
    return f"{protocol.title}: {note}" if note else ""


class _Evaluator:
    """The subjects of what was opened, kept for all protocols with the same images, so that features are extracted once."""

    def __init__(
        self, target: Any, location: str, common: dict[str, Any], is_first: bool, validation_share: float | None = None
    ) -> None:
        self._target, self._location, self._common, self._is_first = target, location, common, is_first
        self._validation_share = validation_share
        self._data: dict[Any, tuple[ImageSource, ImageSource]] = {}
        self._frozen_models: dict[Any, Evaluated] = {}
        self._printed: set[str] = set()

    def result(self, protocol: Protocol, path: Path | None, with_random: bool) -> Result:
        began = time.perf_counter()
        train, test = self._open(protocol)
        self._require_agreement(protocol, train, test)
        self._say_once(describe_note(protocol, len(train)))
        title = "untrained" if self._target.untrained else "pre-trained"
        metrics = self._evaluate(protocol, title, path)
        random = self._evaluate(protocol, "random", path and path / "random") if with_random else None
        frozen = self._frozen(protocol, title)
        copies = self._count_copies(*frozen.images)
        for source, images, part in zip((train, test), frozen.images, ("training", "test"), strict=True):
            self._say_once(lost_classes(source, images.labels, part))
        if remark := protocol.remark(metrics, random):
            say(f"{protocol.title}: {remark}")
        if path is not None and metrics.outcomes is not None and self._is_first:
            _save(path.with_name(path.name + SUFFIX), frozen.images[1].keys, metrics, random)
        metric = getattr(test, "metric", protocol.metric)
        return Result(
            protocol=protocol.describe(),
            preset=protocol.preset,
            protocol_hash=protocol.hash,
            backbone=self._target.title,
            data=self._location,
            classes=protocol.count_classes(train, test),
            train_images=frozen.image_counts[0],
            test_images=frozen.image_counts[1],
            metric=metric if metric in metrics.values else protocol.metric,
            figures=metrics.values,
            random_figures=random.values if random else None,
            gain_intervals=_intervals(metrics, random),
            seconds=time.perf_counter() - began,
            details={**metrics.details, **self._pool(protocol), "copies": copies.describe()},
        )

    def _require_agreement(self, protocol: Protocol, train: ImageSource, test: ImageSource) -> None:
        """Refuses processes that would evaluate different things."""
        if this_process().world == 1:
            return
        labels = "".join(
            hashlib.sha256(source.labels.tobytes()).hexdigest() for source in (train, test) if source.labels is not None
        )
        require_agreement(
            {
                "version of mapet": str(package_version("mapet")),
                "version of torch": torch.__version__,
                "protocol": protocol.hash,
                "backbone": fingerprint(self._target.backbone, {}),
                "images": f"{len(train)} {len(test)} {labels}",
            }
        )

    def _pool(self, protocol: Protocol) -> dict[str, str]:
        """The pool to use if the backbone does not have the requested one."""
        if not protocol.pools or protocol.pool != "both" or self._target.backbone.cls_token is not None:
            return {}
        self._say_once("This backbone has no class token: pool 'both' is the mean of the patches.")
        return {"pool": "mean"}

    def _count_copies(self, train: KeyedImages, test: KeyedImages) -> Copies:
        """Copies among the images of a protocol that were read, counted and reported once for the same images."""
        copies = count_copies(train, test)
        self._say_once(copies.line(len(test.keys)))
        return copies

    def _say_once(self, line: str) -> None:
        if line and line not in self._printed:
            say(line)
        self._printed.add(line)

    def _open(self, protocol: Protocol) -> tuple[ImageSource, ImageSource]:
        kind = type(protocol).open_data
        if kind not in self._data:
            train, test = protocol.open_data(self._location)
            if self._validation_share is not None:
                train, test = _training_images_alone(train, self._validation_share)
            self._data[kind] = train, test
        return self._data[kind]

    def _evaluate(self, protocol: Protocol, title: str, folder: Path | None) -> Metrics:
        frozen = self._frozen(protocol, title)
        frozen.folder = folder
        return protocol.evaluate(frozen)

    def _frozen(self, protocol: Protocol, title: str) -> Evaluated:
        key = (type(protocol).open_data, title)
        if key not in self._frozen_models:
            self._frozen_models[key] = protocol.prepare(self._target, title, *self._open(protocol), **self._common)
        return self._frozen_models[key]


def _training_images_alone(train: ImageSource, share: float) -> tuple[ImageSource, ImageSource]:
    """Training images to learn from, and `share` of them in place of the test images."""
    assert train.labels is not None
    held_out = hold_out_rows(torch.from_numpy(train.labels), share, 0).numpy()
    return subset(train, np.flatnonzero(~held_out)), subset(train, np.flatnonzero(held_out))


def _intervals(metrics: Metrics, random: Metrics | None) -> dict[str, list[float]]:
    """Of the gain in every metric, where both have the outcome of every image."""
    if random is None or metrics.outcomes is None or random.outcomes is None:
        return {}
    return gain_intervals(metrics.outcomes, random.outcomes)


def _save(path: Path, keys: np.ndarray, metrics: Metrics, random: Metrics | None) -> None:
    parts = {"pre-trained": metrics, "random": random}
    save_outcomes(path, keys, {name: part.outcomes for name, part in parts.items() if part and part.outcomes})
