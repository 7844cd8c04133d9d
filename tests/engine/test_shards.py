"""Sharded checkpoints: what several processes wrote is read by one, and what does not fit is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mapet.engine.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from mapet.errors import CheckpointError
from mapet.runtime.files import sha256, write_json
from mapet.runtime.json_files import read_json, sealed, unsealed

Parts = list[dict[str, Tensor]]


def model_and_optimizer(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """After one step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def sharded(folder: Path, change: Callable[[Parts, list[dict]], None] = lambda parts, offsets: None) -> Checkpoint:
    """A checkpoint whose optimizer state two processes wrote, each half of the rows; `change` damages it before it is sealed."""
    path = save_checkpoint(folder, 1, "science", *model_and_optimizer(0), keep=1).path
    whole = load_file(path / "optimizer.safetensors")
    parts: Parts = [{}, {}]
    offsets: list[dict] = [{}, {}]
    for name, tensor in whole.items():
        halves = [tensor] if tensor.ndim == 0 else tensor.chunk(2)
        for number, half in enumerate(halves):
            parts[number][name] = half.contiguous()
            offsets[number][name] = {"saved_offsets": [number * len(halves[0]), *[0] * (half.ndim - 1)] if half.ndim else []}
    change(parts, offsets)
    (path / "optimizer").mkdir()
    for number, (tensors, places) in enumerate(zip(parts, offsets, strict=True)):
        save_file(tensors, path / "optimizer" / f"shard-{number}.safetensors", {"DCP_SHARDING_INFO": json.dumps(places)})
    (path / "optimizer.safetensors").unlink()
    seal(path)
    return Checkpoint(path, 1, "science")


def seal(path: Path) -> None:
    """Writes the header anew, with right checksums."""
    header = unsealed(read_json(path / "checkpoint.json", dict), path / "checkpoint.json", required=True)
    header["sha256"] = {str(file.relative_to(path)): sha256(file) for file in path.rglob("*.safetensors")}
    write_json(path / "checkpoint.json", sealed(header))


def test_one_process_reads_what_two_wrote(tmp_path: Path) -> None:
    checkpoint = newest_checkpoint(sharded(tmp_path).path.parent)
    assert checkpoint is not None
    (expected, its_optimizer), (model, optimizer) = model_and_optimizer(0), model_and_optimizer(1)
    load_checkpoint(checkpoint, model, optimizer)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], its_optimizer.state_dict()["state"], rtol=0, atol=0)


def test_a_part_that_is_missing_is_noticed(tmp_path: Path) -> None:
    path = sharded(tmp_path).path
    (path / "optimizer" / "shard-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        newest_checkpoint(path.parent)


def _another_parameter(parts: Parts, offsets: list[dict]) -> None:
    parts[0]["2.weight:exp_avg"], offsets[0]["2.weight:exp_avg"] = torch.zeros(2), {"saved_offsets": [0]}


def _too_narrow(parts: Parts, offsets: list[dict]) -> None:
    for part in parts:
        part["0.weight:exp_avg"] = part["0.weight:exp_avg"][:, :2].contiguous()


def _half(parts: Parts, offsets: list[dict]) -> None:
    del parts[1]["0.weight:exp_avg"], offsets[1]["0.weight:exp_avg"]


def _no_places(parts: Parts, offsets: list[dict]) -> None:
    offsets[0].clear()


def _places_of_another_kind(parts: Parts, offsets: list[dict]) -> None:
    offsets[0]["0.weight:exp_avg"] = {"saved_offsets": ["a", -1]}


@pytest.mark.parametrize("change", [_another_parameter, _too_narrow, _half, _no_places, _places_of_another_kind])
def test_parts_that_do_not_fit_are_refused_in_words(tmp_path: Path, change: Callable[[Parts, list[dict]], None]) -> None:
    checkpoint = sharded(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"do not fit this training|of another model"):
        load_checkpoint(checkpoint, *model_and_optimizer(1))
