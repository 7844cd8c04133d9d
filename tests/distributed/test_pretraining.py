"""Pre-training over several processes: their number changes nothing, and a run continues on another number of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mapet.objectives import OBJECTIVES
from tests.distributed import pretraining_on_ranks as on_ranks
from tests.distributed.ranks import run_ranks
from tests.tiny import tiny_store

MODULE = "tests.distributed.pretraining_on_ranks"


@pytest.mark.parametrize("world", [2, 3])
def test_the_number_of_processes_changes_nothing(tmp_path: Path, world: int) -> None:
    """Every objective, with everything that is drawn at random: losses of 20 steps, and the weights."""
    for name in ("alone", "together"):
        tiny_store(tmp_path / name / "store")
    on_ranks.train_all(tmp_path / "alone")
    run_ranks(f"{MODULE}:train_all", world, tmp_path / "together")
    for name in OBJECTIVES:
        alone, together = (on_ranks.losses(tmp_path / where / name) for where in ("alone", "together"))
        assert len(alone) == on_ranks.STEPS
        assert together == pytest.approx(alone, rel=1e-5), name
        expected = load_file(tmp_path / "alone" / f"{name}-0.safetensors")
        found = [load_file(tmp_path / "together" / f"{name}-{rank}.safetensors") for rank in range(world)]
        for key, value in expected.items():
            torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-4, msg=f"{name} {key}")
            assert all(torch.equal(other[key], found[0][key]) for other in found[1:]), (name, key)


def test_a_run_continues_on_another_number_of_processes(tmp_path: Path) -> None:
    """Two processes of which one is killed, then three, then one."""
    for folder in (tmp_path, tmp_path / "whole"):
        tiny_store(folder / "store")
    assert on_ranks.start(tmp_path / "whole") == ""
    with pytest.raises(AssertionError, match="ended with -9"):
        run_ranks(f"{MODULE}:start_and_die", 2, tmp_path)
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())][-1] == "step-00000008"
    stopped = run_ranks(f"{MODULE}:stop_one", 3, tmp_path)
    assert [message.partition(" of")[0] for message in stopped] == ["Stopped after step 10"] * 3
    assert on_ranks.start(tmp_path) == ""
    assert on_ranks.losses(tmp_path / "run") == pytest.approx(on_ranks.losses(tmp_path / "whole" / "run"), rel=1e-5)
    expected, found = (load_file(folder / "run" / "backbone" / "weights.safetensors") for folder in (tmp_path / "whole", tmp_path))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4, msg=key)


def test_two_processes_make_tokenizer_and_tokens_first(tmp_path: Path) -> None:
    assert run_ranks(f"{MODULE}:start", 2, tmp_path) == ["", ""]
    assert {"tokenizer", "tokens", "backbone"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_what_cannot_be_shared_is_refused_in_words_in_all_processes(tmp_path: Path) -> None:
    found = run_ranks(f"{MODULE}:start", 5, tmp_path)
    assert len(found) == 5
    assert all("batch size is 12; it must be a positive multiple of the 5 processes" in message for message in found)
