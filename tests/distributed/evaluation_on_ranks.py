"""Evaluations that train a whole backbone, in each of several processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file

from mapet.checkpoints.address import LoadedBackbone
from mapet.engine.loop import LoopSettings
from mapet.errors import MapetError
from mapet.evaluation.evaluate import evaluate
from mapet.evaluation.finetuning.training import FineTuning
from mapet.evaluation.presets import protocol_of
from mapet.evaluation.probes import attentive
from mapet.evaluation.probes.knn import KNN
from mapet.evaluation.protocol import Protocol
from mapet.evaluation.segmentation.protocol import Segment
from mapet.evaluation.segmentation.training import SegmentationTraining
from mapet.evaluation.supervised.training import SupervisedTraining
from mapet.registry import allow
from mapet.runtime.lock import only_writer
from mapet.runtime.processes import process_group
from mapet.runtime.rank import this_process
from tests.evaluation.finetuning.tiny import EVERYTHING, quick, tiny_frozen, tiny_spec
from tests.evaluation.segmentation.test_training import SPEC, training_in
from tests.tiny import CPU, LOCATION, at_step, open_tiny, weights_of

STEPS = 20
EVERY_STEP = LoopSettings(log_every=1, checkpoint_every=4, checkpoint_seconds=None)
# 40 images: three batches of 13 an epoch, of which mixing leaves one image out; no number of processes but one divides them.
FINE_TUNING: dict[str, Any] = {"batch_size": 13, "min_steps": STEPS, "layer_decay": 0.75, "micro_batch": 3, **EVERYTHING}
VARIANTS: dict[str, dict[str, Any]] = {
    "everything": FINE_TUNING,
    "cls": {**FINE_TUNING, "pool": "cls", "mixup": 0.0, "cutmix": 0.0, "micro_batch": None, "batch_size": 12},
}


def finetuning(folder: Path, name: str = "everything") -> FineTuning:
    """A training in FOLDER/NAME that logs every step."""
    return FineTuning(tiny_frozen(folder / name), quick(**VARIANTS[name]), folder / name, when=EVERY_STEP)


def finetune_all(folder: Path) -> dict[str, Any]:
    """Trains every variant; each process writes its weights, and returns the figures."""
    found = {}
    with process_group("cpu") as processes:
        for name in VARIANTS:
            tuning = finetuning(folder, name)
            found[name] = tuning.train_and_evaluate().values
            save_file(weights_of(tuning.state), folder / f"{name}-{processes.rank}.safetensors")
    return found


def finetune(folder: Path, disturb: Callable[[FineTuning], None] = lambda _: None) -> str:
    """One training; the message it ends with, or ""."""
    try:
        with process_group("cpu"):
            tuning = finetuning(folder)
            disturb(tuning)
            tuning.train_and_evaluate()
    except MapetError as error:
        return str(error)
    return ""


def finetune_and_die(folder: Path) -> str:
    """The same; the last process is killed at step 10."""
    return finetune(folder, lambda tuning: _in_the_last(tuning, 10, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def finetune_and_stop(folder: Path) -> str:
    """The same; SIGTERM comes to the last process while step number 13 is taken."""
    return finetune(folder, lambda tuning: _in_the_last(tuning, 13, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def _in_the_last(tuning: SupervisedTraining, step: int, action: Callable[[], None]) -> None:
    if tuning.processes.rank == tuning.processes.world - 1:
        at_step(tuning, step, action)


def protocols() -> list[Protocol]:
    """All that several processes can share, on few steps; batches of 13 images divide by no number of them."""
    few = {"epochs": 2, "min_steps": 4, "batch_size": 13}
    return [
        protocol_of("knn"),
        protocol_of("logistic", {"l2": (1e-3, 1e-1)}),
        protocol_of("fewshot", {"draws": 2, "share": 0.2}),
        protocol_of("linear", few),
        protocol_of("linear:sweep", few),
        protocol_of("linear:paper", {**few, "lr": (1e-3, 1e-2)}),
        protocol_of("linear:beit_published", few),
        protocol_of("linear:cae", {**few, "warmup_epochs": 1}),
        protocol_of("attentive", few),
        quick(batch_size=13, ema=0.5, mixup=0.8),
    ]


def evaluate_all(folder: Path) -> list[dict[str, float]]:
    """The figures; the first process keeps the results."""
    recipe = tiny_spec()
    opened = LoadedBackbone(recipe.build(), recipe, "tiny")
    results = evaluate(opened, LOCATION, protocols(), device=CPU, folder=folder / "out")
    return [result.figures for result in results]


def evaluate_uncached(folder: Path) -> list[dict[str, float]]:
    """The attentive probe where patch tokens have no room: they are computed again in every epoch, by all processes."""
    attentive.CACHE_BYTES = 0
    recipe = tiny_spec()
    opened = LoadedBackbone(recipe.build(), recipe, "tiny")
    protocol = protocol_of("attentive", {"epochs": 2, "min_steps": 4, "batch_size": 13})
    return [result.figures for result in evaluate(opened, LOCATION, [protocol], device=CPU, with_random=False)]


SEGMENTATION = {
    "steps": 10, "batch_size": 5, "lr": 2e-3, "warmup_steps": 2, "drop_path": 0.2, "crop": 32, "stride": 21, "scale": (128, 32),
    "channels": 8, "aux_channels": 8, "dropout": 0.3,
}  # fmt: skip


def segment(folder: Path, disturb: Callable[[SegmentationTraining], None] = lambda _: None) -> str:
    """UperNet on FOLDER/pictures, in FOLDER/segment; the message it ends with, or "". Each process writes its weights."""
    try:
        with process_group("cpu") as processes:
            training = training_in(folder / "segment", folder / "pictures", loop={"when": EVERY_STEP}, **SEGMENTATION)
            disturb(training)
            save_file(weights_of(training.trained_model()), folder / f"segment-{processes.rank}.safetensors")
    except MapetError as error:
        return str(error)
    return ""


def segment_and_die(folder: Path) -> str:
    """The same; the last process is killed at step 6."""
    return segment(folder, lambda training: _in_the_last(training, 6, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def segment_and_stop(folder: Path) -> str:
    """The same; SIGTERM comes to the last process while step number 8 is taken."""
    return segment(folder, lambda training: _in_the_last(training, 8, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def evaluate_segment(folder: Path) -> list[dict[str, float]]:
    """The figures of a short training; the first process keeps the result."""
    opened = LoadedBackbone(SPEC.build(), SPEC, "tiny")
    protocol = Segment(**{**SEGMENTATION, "steps": 3, "warmup_steps": 1})  # type: ignore[arg-type]
    data = str(folder.parent / "pictures")
    return [result.figures for result in evaluate(opened, data, [protocol], device=CPU, folder=folder / "out", max_unreadable=1)]


def refused(folder: Path) -> list[str]:
    """What processes are told that cannot share the work: a batch of 2, other settings, a protocol for one, a folder in use."""
    rank = this_process().rank
    recipe = tiny_spec()
    opened = LoadedBackbone(recipe.build(), recipe, "tiny")
    asked: list[Protocol] = [quick(batch_size=2), quick(lr=1e-3 if rank else 2e-3), InOneProcess(), quick()]
    messages = []
    for number, protocol in enumerate(asked):
        try:
            with only_writer(*([folder / "3" / protocol.stem(LOCATION)] if number == 3 and rank == 0 else [])):
                evaluate(opened, LOCATION, [protocol], device=CPU, folder=folder / str(number))
        except MapetError as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def unreadable(folder: Path) -> list[str]:
    """What all processes are told where the last of them cannot read one of its images, and how many are left if it may."""
    found = []
    for limit in (0, 1):
        recipe = tiny_spec()
        opened = LoadedBackbone(recipe.build(), recipe, "tiny")
        try:
            (result,) = evaluate(
                opened, BROKEN, [protocol_of("linear:paper", {"epochs": 1, "batch_size": 13})], device=CPU, max_unreadable=limit
            )
            found.append(f"{result.train_images} {result.test_images} {result.figures}")
        except MapetError as error:
            found.append(str(error))
    return found


BROKEN = "tests.distributed.evaluation_on_ranks:open_broken"
allow(BROKEN)


def open_broken(location: str, split: str) -> Any:
    """Tiny images, of which training image 37 and test image 19 are none."""
    source: Any = open_tiny(location, split)
    read = source.read
    source.read = lambda index: b"none" if index == (19 if split == "test" else 37) else read(index)
    return source


@dataclass(frozen=True, kw_only=True)
class InOneProcess(KNN):
    """A protocol that does not declare that several processes can share it."""

    name: ClassVar[str] = "own"
    several_processes: ClassVar[bool] = False


def kept(folder: Path) -> dict[str, Any]:
    """Every value of every result file, by its place, without the seconds that were taken."""
    files = sorted(folder.glob("*.json"))
    return {key: value for path in files for key, value in _flat(json.loads(path.read_text()), path.name) if "seconds" not in key}


def _flat(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [pair for name, each in inner for pair in _flat(each, f"{key} {name}")]
    return [(key, value)]
