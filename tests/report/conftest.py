from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from mapet.config import load_recipe
from mapet.evaluation.protocol import Result
from mapet.pretraining.pretrain import pretrain
from mapet.runtime.files import write_json
from mapet.runtime.run_directory import RunDirectory

TINY = [
    "backbone.options={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 1, init_values: 0.1, num_classes: 0}",
    "objective.options={num_context: 4}",
    "tokenizer.vocab_size=24",
    "tokenizer.num_points=600",
    "tokenizer.max_images=100",
    "tokenizer.iterations=3",
    "tokenizer.restarts=1",
    "training.steps=3",
    "training.batch_size=8",
    "training.warmup_epochs=0",
    "mechanics.log_every=1",
]


def result(name: str = "knn", top1: float = 0.8, random_top1: float = 0.5, **others: object) -> Result:
    values = {
        "protocol": {"name": name, "version": 1, "pool": "mean"},
        "protocol_hash": "0123abcd",
        "data": "digits",
        "classes": 10,
        "train_images": 1437,
        "test_images": 360,
        "figures": {"top1": top1},
        "random_figures": {"top1": random_top1},
        "seconds": 1.0,
    }
    return Result(**(values | others))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> RunDirectory:
    """A MaPeT run of three steps; not to be changed."""
    return pretrain("digits", load_recipe("digits", TINY), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def run(finished, tmp_path) -> RunDirectory:
    """A copy of the run, with an evaluation, to be changed at will."""
    copied = RunDirectory(shutil.copytree(finished.path, tmp_path / "run"))
    write_json(copied.evaluations / "knn.json", asdict(result()))
    return copied


@pytest.fixture(scope="session")
def others(finished, tmp_path_factory) -> dict[str, Path]:
    """Runs of MIM and PIM on the same tokens."""
    folder = tmp_path_factory.mktemp("others")
    return {
        name: pretrain(
            "digits", load_recipe("digits", [*TINY, f"objective.name={name}"]), folder / name, tokens=finished.tokens
        ).path
        for name in ("mim", "pim")
    }
