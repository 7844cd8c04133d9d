"""What a report needs from a run directory, each part read when it is first asked for.

Parts that are not there raise a MapetError whose message says what would bring them; the page shows that sentence instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mapet.config.settings import PretrainSettings, parse_settings
from mapet.errors import CheckpointError, DataError, NotThereError
from mapet.evaluation.protocol import Result
from mapet.objectives.base import Objective
from mapet.runtime.run_directory import RunDirectory, read_json
from mapet.runtime.seeding import seeded_generator
from mapet.token_store.read import TokenStore

SAMPLED_IMAGES = 1000
_OBJECTIVES = {"mapet": "MaPeT", "pim": "PIM", "mim": "MIM"}


@dataclass(frozen=True)
class Sample:
    """Training images of a run, drawn by its seed.

    Args:
        images: (n, H, W, 3) uint8, as the model sees them.
        ids: (n, gh, gw) int64, their stored tokens.
        names: What their source calls them.
    """

    images: np.ndarray
    ids: np.ndarray
    names: list[str]


class ReportedRun:
    """One run of a report.

    Args:
        run: Its directory.
        title: What to call it beside the others.
    """

    def __init__(self, run: RunDirectory, title: str) -> None:
        self.run, self.title = run, title
        self.config = run.read_config()
        self.science = flat(self.config.get("science", {}))
        self.mechanics = flat(self.config.get("mechanics", {}))

    @property
    def objective_title(self) -> str:
        """As papers write it."""
        name = str(self.science.get("objective.name", "unknown objective"))
        return _OBJECTIVES.get(name, name)

    @property
    def data(self) -> str:
        """Where the images were when the run was started."""
        return str(self.config.get("data", "unknown"))

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """One entry for every start of the run; empty where none was recorded."""
        return read_json(self.run.environment) if self.run.environment.is_file() else []

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The entries of metrics.jsonl that have a finite loss, by step."""
        entries = [entry for entry in self.run.read_metrics() if {"step", "loss"} <= entry.keys()]
        return sorted((entry for entry in entries if math.isfinite(entry["loss"])), key=lambda entry: entry["step"])

    @property
    def steps(self) -> int:
        """Optimizer steps that were logged."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def images_seen(self) -> int:
        """Steps times batch size."""
        return self.steps * int(self.science.get("training.batch_size", 0))

    @property
    def training_seconds(self) -> float:
        """Wall time of the training loop, over all starts: the clock in metrics.jsonl begins anew at each."""
        clock = [0.0, *(entry.get("seconds", 0.0) for entry in self.metrics), 0.0]
        return sum(now for now, following in pairwise(clock) if following < now)

    @cached_property
    def results(self) -> list[Result]:
        """The evaluations that are kept with the run, those on its own data first; files that are no evaluation are passed over."""
        found = []
        for path in sorted(self.run.evaluations.glob("*.json")):
            try:
                result = Result(**read_json(path))
                order = (result.data != self.data, str(result.protocol["name"]), result.protocol["pool"] != "mean", path.name)
                found.append((order, result))
            except (CheckpointError, TypeError, KeyError):
                continue
        return [result for _, result in sorted(found, key=lambda entry: entry[0])]

    @cached_property
    def settings(self) -> PretrainSettings:
        """The settings, checked by this version of mapet."""
        return parse_settings({**self.config.get("science", {}), "mechanics": self.config.get("mechanics", {})})

    @cached_property
    def store(self) -> TokenStore:
        """The tokens that the run was trained on."""
        return TokenStore.open(Path(self.config.get("tokens") or self.run.tokens))

    @cached_property
    def usage(self) -> np.ndarray:
        """How often every code occurs in the token store, (vocab,) int64."""
        counts = np.zeros(self.store.vocab_size, np.int64)
        for start in range(0, len(self.store), 10_000):
            ids = np.asarray(self.store.ids[start : start + 10_000])
            counts += np.bincount(ids.ravel(), minlength=len(counts))[: len(counts)]
        return counts

    @cached_property
    def objective(self) -> Objective:
        """The objective in evaluation mode, as it was before training."""
        from mapet.training.pretrain import backbone_recipe, build_objective

        objective = build_objective(self.settings, backbone_recipe(self.settings).build(), self.settings.tokenizer.vocab_size)
        objective.backbone.set_grad_checkpointing(False)
        return objective.eval()

    def load_newest_checkpoint(self) -> int:
        """Gives `objective` its trained weights.

        Returns:
            The step of the checkpoint.

        Raises:
            NotThereError: There is no checkpoint.
            CheckpointError: Every checkpoint is damaged.
        """
        from safetensors.torch import load_file

        from mapet.models.weights import load_strictly
        from mapet.training.checkpoint import newest_checkpoint

        checkpoint = newest_checkpoint(self.run.checkpoints)
        if checkpoint is None:
            raise NotThereError(
                f"There is no checkpoint in {self.run.checkpoints}. Continue the run with the command it was started with "
                f"(`mapet pretrain ... --out {self.run.path}`); it writes one when it stops."
            )
        load_strictly(self.objective, load_file(checkpoint.path / "model.safetensors"))
        return checkpoint.step

    @cached_property
    def sample(self) -> Sample:
        """Up to `SAMPLED_IMAGES` training images.

        The whole source is drawn from, as finding its training part may mean reading every file; images without stored tokens were
        not trained on and are left out.
        """
        import torch

        from mapet.data.loader import make_loader
        from mapet.data.sources import open_source
        from mapet.data.views import FixedView

        source = open_source(self.data, "all")
        order = torch.randperm(len(source), generator=seeded_generator(self.settings.seed, "report"))[:SAMPLED_IMAGES]
        (loaded,) = make_loader(source, FixedView(self.settings.image_size), [order.tolist()], workers=0)
        known = np.flatnonzero(self.store.contains(loaded.keys))
        if not len(known):
            raise DataError(
                f"None of {len(loaded.keys)} images drawn from {self.data} has tokens in {self.store.path}: they are not those of "
                "the run, or have changed since. Bring the images back to see this."
            )
        return Sample(
            images=loaded.images.permute(0, 2, 3, 1).numpy()[known],
            ids=self.store.lookup([loaded.keys[index] for index in known]).numpy(),
            names=[source.describe(int(loaded.indices[index])) for index in known],
        )


def open_runs(runs: Sequence[RunDirectory]) -> list[ReportedRun]:
    """The runs under titles that tell them apart: the name of the folder, or its whole path where names repeat."""
    names = [run.path.resolve().name for run in runs]
    return [ReportedRun(run, name if names.count(name) == 1 else str(run.path)) for run, name in zip(runs, names, strict=True)]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(values, dict) or not values:
        return {prefix.rstrip("."): values}
    return {name: value for key, entry in values.items() for name, value in flat(entry, f"{prefix}{key}.").items()}


def entropy(counts: np.ndarray) -> float:
    """Of the distribution that `counts` are drawn from, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
