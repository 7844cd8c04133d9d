"""What a report needs from a run directory, each part read when it is first used.

Missing parts raise a MapetError whose message has the command that adds them; the page shows that message instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapet.config.recipes import refuse_foreign_names
from mapet.config.settings import PretrainSettings, parse_settings
from mapet.data.sources import absolute_location, recorded_location
from mapet.engine.warnings import warning_lines
from mapet.errors import CheckpointError, NotThereError
from mapet.evaluation.outcomes import SUFFIX, Outcomes, load_outcomes
from mapet.evaluation.protocol import Result, data_digits
from mapet.evaluation.result_files import read_results
from mapet.objectives import OBJECTIVES
from mapet.objectives.base import Objective
from mapet.report.sample import Sample, draw_sample
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.read import TokenStore
from mapet.token_store.token_source import OnlineTokens, StoredTokens, TokenSource
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.scoring import information

_OBJECTIVES = {"mapet": "MaPeT", "pim": "PIM", "mim": "MIM", "beit": "BEiT", "beit_v2": "BEiT v2", "cae": "CAE"}
_OBJECTIVES |= {"simmim": "SimMIM", "maskfeat": "MaskFeat", "mvp": "MVP"}

_STEM = re.compile(r".+-[0-9a-f]{8}-([0-9a-f]{8})")  # of `Protocol.stem`
_POOLS = ("both", "mean", "cls")  # in this order


class ReportedRun:
    """One run of a report.

    Args:
        run: Its directory.
        title: What to call it beside the others.
        data_names: Digits of a place with images to what the page calls it; shared by the runs of a page.
    """

    def __init__(self, run: RunDirectory, title: str, data_names: dict[str, str] | None = None) -> None:
        self.run, self.title, self._data_names = run, title, {} if data_names is None else data_names
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
        """One entry for every start of the run; empty where none was recorded, or the record is damaged."""
        try:
            return self.run.read_environments()
        except CheckpointError:
            return []

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
        """Images that the logged steps trained on, without those that could not be read."""
        counts = [entry.get("images") for entry in self.metrics]
        if all(isinstance(count, int) for count in counts):
            return sum(count for count in counts if isinstance(count, int))
        return self.steps * self.batch_size  # a run whose log does not count them

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        size = self.science.get("training.batch_size", 0)
        return size if isinstance(size, int) else 0

    @property
    def training_seconds(self) -> float:
        """Wall time of the training loop, over all starts: the clock in metrics.jsonl begins anew at each."""
        clock = [0.0, *(entry.get("seconds", 0.0) for entry in self.metrics), 0.0]
        return sum(now for now, following in pairwise(clock) if following < now)

    @cached_property
    def left_out(self) -> list[str]:
        """What cannot be read of the small files of the run, a sentence each."""
        remarks = [self.run.metrics_lines().remark(), warning_lines(self.run).remark()]
        if self.run.environment.is_file() and not self.environments:
            remarks.append(f"{self.run.environment} is damaged and left out.")
        remarks += [f"{path} is no evaluation, or a damaged one, and left out." for path in self._evaluations[1]]
        return [remark for remark in remarks if remark]

    @cached_property
    def _evaluations(self) -> tuple[list[tuple[Any, Result]], list[Path]]:
        """The evaluations that are kept with the run, with what orders them, and the files that are none."""
        results, damaged = read_results(self.run.evaluations)
        ordered = []
        for path, result in results.items():
            renamed, pool = replace(result, data=self._data_name(result, path)), result.protocol.get("pool")
            order = _POOLS.index(pool) if pool in _POOLS else 0
            ordered.append(((renamed.data != self.data, str(renamed.protocol["name"]), order, path.name), renamed))
        return ordered, damaged

    def _data_name(self, result: Result, path: Path) -> str:
        """One name for one place, however it was written: the digits in the name of a result are those of the whole path."""
        if absolute_location(result.data) == self.data:
            return self.data
        self._data_names.setdefault(data_digits(self.data), self.data)
        match = _STEM.fullmatch(path.stem)
        return self._data_names.setdefault(match[1], result.data) if match else result.data

    @cached_property
    def results(self) -> list[Result]:
        """The evaluations that are kept with the run, those on its own data first; other files are left out."""
        return [result for _, result in sorted(self._evaluations[0], key=lambda entry: entry[0])]

    def outcomes_of(self, result: Result) -> tuple[np.ndarray, Outcomes]:
        """Sample keys and outcomes of the images that one of `results` was tested on.

        Raises:
            CheckpointError: They were not kept, or are damaged.
        """
        name = next(order[-1] for order, other in self._evaluations[0] if other is result)
        return load_outcomes(self.run.evaluations / f"{Path(name).stem}{SUFFIX}")

    @cached_property
    def settings(self) -> PretrainSettings:
        """The settings, checked by this version of mapet.

        Raises:
            SettingsError: They are not allowed, or name code, weights or files that the user did not type.
        """
        settings = parse_settings({**self.config.get("science", {}), "mechanics": self.config.get("mechanics", {})})
        refuse_foreign_names(settings)
        return settings

    @cached_property
    def tokens(self) -> TokenSource:
        """The tokens that the run was trained on.

        Raises:
            NotThereError: The objective predicts no tokens.
            TokenStoreError: The store is gone or damaged.
            TokenizerError: The same of the tokenizer.
        """
        if "tokens" not in OBJECTIVES.get(self.settings.objective.name).needs:
            raise NotThereError(f"{self.objective_title} predicts no visual tokens.")
        if self.settings.view.name == "online":
            tokenizer = load_tokenizer(Path(self.config.get("tokenizer") or self.run.tokenizer))
            return OnlineTokens(tokenizer, torch.device("cpu"))
        return StoredTokens(TokenStore.open(Path(self.config.get("tokens") or self.run.tokens)))

    @property
    def tokens_folder(self) -> str:
        """Where the tokens of the run are; runs of one comparison share them."""
        if self.science.get("view.name") == "online":
            return str(self.config.get("tokenizer") or self.run.tokenizer)
        return str(self.config.get("tokens") or self.run.tokens)

    @cached_property
    def usage(self) -> np.ndarray:
        """How often every code occurs, (vocab,) int64: in the token store or, where there is none, in the sampled images."""
        counts = np.zeros(self.tokens.vocab_size, np.int64)
        store = self.tokens.store
        ids = self.sample.ids if store is None else store.ids
        for start in range(0, len(ids), 10_000):
            counts += np.bincount(np.asarray(ids[start : start + 10_000]).ravel(), minlength=len(counts))[: len(counts)]
        return counts

    @property
    def counted(self) -> str:
        """What `usage` counts, in words."""
        store = self.tokens.store
        if store is None:
            return f"{self.usage.sum():,} tokens of one crop of each of {len(self.sample.ids):,} images"
        views = f" in {store.num_views} views each" if store.num_views else ""
        return f"{self.usage.sum():,} stored tokens of {len(store):,} images{views}"

    @cached_property
    def objective(self) -> Objective:
        """The objective in evaluation mode, as it was before training."""
        from mapet.pretraining.pretrain import backbone_spec, build_objective

        objective = build_objective(self.settings, backbone_spec(self.settings).build())
        return objective.eval()

    def load_newest_checkpoint(self) -> int:
        """Gives `objective` its trained weights.

        Returns:
            The step of the checkpoint.

        Raises:
            NotThereError: There is no checkpoint.
            CheckpointError: Every checkpoint is damaged.
        """
        from mapet.engine.checkpoint import newest_checkpoint
        from mapet.models.weights import load_strictly
        from mapet.runtime.tensors import load_tensors

        checkpoint = newest_checkpoint(self.run.checkpoints)
        if checkpoint is None:
            raise NotThereError(
                f"There is no checkpoint in {self.run.checkpoints}. Continue the run with the command it was started with "
                f"(`mapet pretrain ... --out {self.run.path}`); it writes one when it stops."
            )
        load_strictly(self.objective, load_tensors(checkpoint.path / "model.safetensors"))
        return checkpoint.step

    @property
    def sample_is_of_training(self) -> bool:
        """Whether all of `sample` was trained on, which only a token store records."""
        return self.tokens.store is not None

    @cached_property
    def sample(self) -> Sample:
        """Up to `SAMPLED_IMAGES` images with their tokens; raises like `tokens`, and DataError without images."""
        return draw_sample(recorded_location(self.config.get("data"), self.run.config), self.settings, self.tokens)


def open_runs(runs: Sequence[RunDirectory]) -> list[ReportedRun]:
    """The runs under distinct titles: the name of the folder, or its whole path where names repeat."""
    names = [run.path.resolve().name for run in runs]
    titles = [name if names.count(name) == 1 else str(run.path) for run, name in zip(runs, names, strict=True)]
    data_names: dict[str, str] = {}
    return [ReportedRun(run, title, data_names) for run, title in zip(runs, titles, strict=True)]


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(values, dict) or not values:
        return {prefix.rstrip("."): values}
    return {name: value for key, entry in values.items() for name, value in flat(entry, f"{prefix}{key}.").items()}


def entropy(counts: np.ndarray) -> float:
    """Of the distribution that `counts` are drawn from, in nats, as losses are."""
    return math.log(2) * information.entropy(counts)
