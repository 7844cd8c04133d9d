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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every objective, trained in one process."""
    folder = tmp_path_factory.mktemp("alone")
    tiny_store(folder / "store")
    on_ranks.train_all(folder)
    return folder


@pytest.mark.parametrize(
    ("world", "function", "names"),
    [
        (2, "train_all", tuple(OBJECTIVES)),
        (3, "train_all", tuple(OBJECTIVES)),
        (2, "train_sharded", on_ranks.SHARDED),
        (4, "train_sharded_by_machine", ("mapet",)),
    ],
)
def test_the_number_of_processes_changes_nothing(
    tmp_path: Path, alone: Path, world: int, function: str, names: tuple[str, ...]
) -> None:
    """With everything that is drawn at random: losses of 20 steps, and the weights."""
    tiny_store(tmp_path / "store")
    run_ranks(f"{MODULE}:{function}", world, tmp_path)
    for name in names:
        expected_losses = on_ranks.losses(alone / name)
        assert len(expected_losses) == on_ranks.STEPS
        assert on_ranks.losses(tmp_path / name) == pytest.approx(expected_losses, rel=1e-5), name
        expected = load_file(alone / f"{name}-0.safetensors")
        found = [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(world)]
        for key, value in expected.items():
            torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-4, msg=f"{name} {key}")
            assert all(torch.equal(other[key], found[0][key]) for other in found[1:]), (name, key)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_how_passes_are_computed_changes_nothing(tmp_path: Path) -> None:
    """Sharded weights with micro-batches, activation checkpointing, compiled blocks and bf16, against one process."""
    tiny_store(tmp_path / "store")
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        tiny_store(folder / "store")
    on_ranks.train_in_many_ways(alone)
    run_ranks(f"{MODULE}:train_in_many_ways_sharded", 2, together)
    for name, tolerance in on_ranks.TOLERANCE.items():
        assert on_ranks.losses(together / name) == pytest.approx(on_ranks.losses(alone / name), rel=tolerance), name
    plain = on_ranks.losses(alone / "plain")
    assert on_ranks.losses(alone / "parts") == pytest.approx(plain, rel=1e-5)
    assert on_ranks.losses(alone / "bf16") != plain


def test_a_run_continues_on_another_number_of_processes(tmp_path: Path) -> None:
    """Two with sharded weights of which one is killed, three with whole ones, two with sharded ones again, then one."""
    for folder in (tmp_path, tmp_path / "whole"):
        tiny_store(folder / "store")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert on_ranks.start(tmp_path / "whole") == ""
    with pytest.raises(AssertionError, match="ended with -9"):
        run_ranks(f"{MODULE}:start_and_die", 2, tmp_path)
    assert [path.name for path in sorted(checkpoints.iterdir())][-1] == "step-00000008"
    assert len([*(checkpoints / "step-00000008" / "optimizer").iterdir()]) == 2
    for world, function, step in ((3, "stop_one", 10), (2, "stop_one_sharded", 14)):
        stopped = run_ranks(f"{MODULE}:{function}", world, tmp_path)
        assert [message.partition(" of")[0] for message in stopped] == [f"Stopped after step {step}"] * world
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
