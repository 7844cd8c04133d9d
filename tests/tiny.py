"""The smallest run that has everything: 40 images of 16 pixels, random-projection tokens, a ViT of width 24."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mapet.config.settings import PretrainSettings, parse_settings
from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.data.sources import open_source
from mapet.engine.callbacks import Monitor
from mapet.engine.loop import Training
from mapet.health.signs import VitalSigns
from mapet.objectives.base import Objective
from mapet.pretraining.pretrain import backbone_spec, build_objective
from mapet.pretraining.training import PreTraining
from mapet.registry import allow
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import StoredTokens
from mapet.tokenizers.random_projection import RandomProjection

LOCATION = "tests.tiny:open_tiny"
allow(LOCATION)  # runs record it, and reports and evaluations of them open it
VOCAB, IMAGES, BATCH = 20, 40, 8
CPU = torch.device("cpu")


class TinyImages:
    """Images of two kinds, dark and bright, as binary PPM files; the kind is the label."""

    def __init__(self, location: str, count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.labels: np.ndarray | None = np.arange(count) % 2
        low = 100 * self.labels[:, None, None, None]
        self._pixels = (low + generator.integers(0, 150, (count, 16, 16, 3))).astype(np.uint8)
        self.location, self.classes = location, ("dark", "bright")

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> bytes:
        return b"P6 16 16 255\n" + self._pixels[index].tobytes()

    def describe(self, index: int) -> str:
        return f"tiny image {index}"


def open_tiny(location: str, split: str) -> ImageSource:
    return TinyImages(location, 20, seed=1) if split == "test" else TinyImages(location, IMAGES, seed=0)


def tiny_values(**changes: Any) -> dict[str, Any]:
    """Plain settings; `changes` are dotted names with __ for the dots."""
    values: dict[str, Any] = {
        "seed": 3,
        "image_size": 16,
        "backbone": {
            "options": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 0.1, "num_classes": 0}
        },
        "objective": {"name": "mapet", "options": {"num_context": 4}},
        "tokenizer": {"vocab_size": VOCAB},
        "training": {"steps": 12, "batch_size": BATCH, "lr": 2e-3, "warmup_steps": 3},
        "mechanics": {"device": "cpu", "workers": 0, "checkpoint_every": 3, "log_every": 1},
    }
    for name, value in changes.items():
        *sections, last = name.split("__")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return values


def tiny_settings(**changes: Any) -> PretrainSettings:
    return parse_settings(tiny_values(**changes))


def tiny_tokenizer(seed: int = 0) -> RandomProjection:
    return RandomProjection(image_size=16, patch_size=4, vocab_size=VOCAB, seed=seed)


def tiny_source() -> ImageSource:
    return open_source(LOCATION, "train")


def tiny_store(path: Path, seed: int = 0) -> TokenStore:
    return build_store(tiny_source(), tiny_tokenizer(seed), path, unreadable=UnreadableImages())


def tiny_objective(settings: PretrainSettings) -> Objective:
    backbone = backbone_spec(settings).build(drop_path_rate=settings.training.drop_path)
    return build_objective(settings, backbone)


def tiny_trainer(
    run: Path,
    store: TokenStore,
    settings: PretrainSettings,
    objective: Objective | None = None,
    monitors: Sequence[Monitor[Any]] | None = None,
    **loop: Any,
) -> PreTraining:
    objective = objective or tiny_objective(settings)
    monitors = [VitalSigns()] if monitors is None else monitors
    tokens = StoredTokens(store)
    return PreTraining(objective, tiny_source(), tokens, settings, RunDirectory(run), CPU, monitors=monitors, **loop)


def at_step(trainer: Training[Any], number: int, action: Callable[[], Any]) -> None:
    """Does something just before step `number` is taken."""
    take = trainer.training_step

    def wrapped(step: int, batch: Any, lr: float) -> Any:
        if step == number:
            action()
        return take(step, batch, lr)

    trainer.training_step = wrapped  # type: ignore[method-assign]


class StopAfter:
    """A signal that comes while some step is taken."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bitwise."""
    assert one.keys() == other.keys()
    different = [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert different == []
