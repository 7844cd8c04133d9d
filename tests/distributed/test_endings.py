"""One process of a pre-training dies, breaks, differs or is asked to stop: what becomes of the others, and of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.pretraining_on_ranks import losses
from tests.distributed.ranks import run_ranks
from tests.tiny import tiny_store

MODULE = "tests.distributed.endings_on_ranks"


def test_torchrun_restarts_a_run_whose_first_process_was_killed(tmp_path: Path) -> None:
    """It holds the lock of the run, and its loader process outlives it."""
    for folder in (tmp_path, tmp_path / "whole"):
        tiny_store(folder / "store")
    run_ranks(f"{MODULE}:start_elastic", 1, tmp_path)
    assert [(tmp_path / f"restarts-{rank}").read_text() for rank in range(2)] == ["1", "1"]
    run_ranks(f"{MODULE}:start_whole", 2, tmp_path / "whole")
    expected, found = (load_file(folder / "run" / "backbone" / "weights.safetensors") for folder in (tmp_path / "whole", tmp_path))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert losses(tmp_path / "run") == losses(tmp_path / "whole" / "run")


@pytest.mark.parametrize("fact", ["version of torch", "settings", "images"])
def test_processes_that_differ_are_refused_in_all_of_them(tmp_path: Path, fact: str) -> None:
    tiny_store(tmp_path / "store")
    (tmp_path / "fact").write_text(fact)
    expected = f"The processes differ in the {fact}: that of rank 1 is not that of rank 0."
    assert all(message.startswith(expected) for message in run_ranks(f"{MODULE}:start_differently", 2, tmp_path))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sigusr1_in_one_process_ends_all_behind_a_checkpoint(tmp_path: Path) -> None:
    """With the code by which a job is queued again."""
    tiny_store(tmp_path / "store")
    assert run_ranks(f"{MODULE}:requeue_one", 2, tmp_path) == [75, 75]
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())][-1] == "step-00000010"


def test_nan_in_one_process_stops_all_before_the_optimizer_moves(tmp_path: Path) -> None:
    tiny_store(tmp_path / "store")
    expected = "The loss or its gradient is not finite at step 9 of the pre-training; steps taken: 9 of 10"
    assert run_ranks(f"{MODULE}:break_one", 2, tmp_path) == [expected] * 2
