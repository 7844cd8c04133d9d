"""Checkpoints that are either complete or not there.

    checkpoints/step-00001500/model.safetensors       what is trained, such as the objective: backbone, mask token, head
                              optimizer.safetensors   AdamW's moments and step counts, by parameter name
                              optimizer/              the same in place of it where weights are sharded: each process wrote its part
                              window.safetensors      sums since the last line of the log, what monitors have gathered; if any
                              checkpoint.json         step, hash of the science, SHA-256 of all files and of itself

Nothing else is needed to continue exactly: order, corruption, jitter and drop path are functions of the step. A folder is written
beside its place and renamed when everything in it is on disk; a damaged one is passed over for the one before it. A checkpoint of
any number of processes, sharded or not, is continued by any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mapet.engine.parallel import is_sharded, whole_state
from mapet.engine.shards import load_shards, names_in_file, save_shards
from mapet.errors import CheckpointError
from mapet.models.weights import load_strictly
from mapet.runtime.files import atomic_directory, remove_leftovers, sha256, storage_errors, write_json
from mapet.runtime.json_files import read_json, sealed, unsealed
from mapet.runtime.progress import say
from mapet.runtime.rank import Processes
from mapet.runtime.tensors import load_tensors, write_tensors

_FILES, _SHARDS = ("model.safetensors", "optimizer.safetensors"), "optimizer"
_WINDOW, _HEADER = "window.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Args:
        path: Its folder.
        step: Optimizer steps taken.
        science_hash: Of the settings that it was trained with.
    """

    path: Path
    step: int
    science_hash: str

    def window(self) -> dict[str, Tensor]:
        """What the log has summed up since its last line, and the monitors; see `TrainingLog.window` and `Callbacks.state`."""
        return load_tensors(self.path / _WINDOW) if (self.path / _WINDOW).is_file() else {}


def save_checkpoint(
    folder: Path,
    step: int,
    science_hash: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    window: Mapping[str, Tensor] | None = None,
    processes: Processes | None = None,
) -> Checkpoint:
    """Writes the state after `step` steps below `folder`, then removes all others but the `keep` - 1 before it.

    Checkpoints of later steps are removed too: had they been whole, the run would have continued from them. Every process calls
    this. The first one writes; others write the parts of sharded tensors that they hold.

    Raises:
        StorageError: The disk is full or not writable; older checkpoints are untouched.
    """
    path, is_first = folder / f"step-{step:08d}", processes is None or processes.rank == 0
    weights, moments = whole_state(model), _optimizer_tensors(model, optimizer)
    if not is_first:
        save_shards(None, moments)
        return Checkpoint(path, step, science_hash)
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, "step-*")
    with atomic_directory(path) as partial:
        write_tensors(partial / _FILES[0], weights)
        if not save_shards(partial / _SHARDS, moments):
            write_tensors(partial / _FILES[1], moments)
        if window:
            write_tensors(partial / _WINDOW, window)
        checksums = {str(file.relative_to(partial)): sha256(file) for file in sorted(partial.rglob("*.safetensors"))}
        header = {"step": step, "science_hash": science_hash, "sha256": checksums}
        write_json(partial / _HEADER, sealed(header))
    _remove_all_but(keep, path)
    return Checkpoint(path, step, science_hash)


def _remove_all_but(keep: int, newest: Path) -> None:
    """Removes the checkpoints beside `newest` that came after it, and those before it but the last `keep` - 1."""
    others = sorted(newest.parent.glob("step-*"))
    remaining = [other for other in others if other.name <= newest.name][-keep:]
    for other in others:
        if other not in remaining:
            shutil.rmtree(other, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint below `folder`; damaged ones are reported and passed over.

    Raises:
        CheckpointError: There are checkpoints, and every one is damaged.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True)
    for path in candidates:
        try:
            return _verified(path)
        except CheckpointError as error:
            say(f"Passing over a damaged checkpoint: {error}")
    if candidates:
        raise CheckpointError(
            f"All {len(candidates)} checkpoints below {folder} are damaged. Delete that folder to start the run again from step 0."
        )
    return None


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and optimizer state back, strictly.

    Raises:
        CheckpointError: Parts of a sharded one do not fit together, or not this model.
        ModelError: The weights of a whole one do not fit.
    """
    weights, parameters = model.state_dict(), dict(model.named_parameters())
    if not any(map(is_sharded, weights.values())):
        load_strictly(model, load_tensors(checkpoint.path / _FILES[0]))
    else:
        _require_same(names_in_file(checkpoint.path / _FILES[0]), {*weights}, checkpoint.path)
        load_shards(checkpoint.path, weights)
    load_moments(model, optimizer, _moments(checkpoint.path, parameters))


def _moments(path: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state, each tensor sharded as its parameter is."""
    file, shards = path / _FILES[1], path / _SHARDS
    if file.is_file() and not any(map(is_sharded, parameters.values())):
        return load_tensors(file)
    files = [file] if file.is_file() else [*shards.glob("*.safetensors")]
    names = {name for each in files for name in names_in_file(each)}
    _require_same({name.rpartition(":")[0] for name in names} - {*parameters}, set(), path)
    state = {name: _empty_state(parameters, name) for name in names}
    load_shards(path if file.is_file() else shards, state)
    return state


def _empty_state(parameters: Mapping[str, nn.Parameter], name: str) -> Tensor:
    """Room for "parameter:quantity": the step is one number, everything else is like the parameter."""
    parameter, _, quantity = name.rpartition(":")
    return torch.zeros(()) if quantity == "step" else torch.zeros_like(parameters[parameter].detach())


def _require_same(actual: set[str], expected: set[str], path: Path) -> None:
    if odd := sorted(actual ^ expected):
        raise CheckpointError(f"{path} is of another model. In one of them only: {', '.join(odd[:5])}.")


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Puts the optimizer's state back: tensors named "parameter:quantity"."""
    indices = {name: index for index, name in enumerate(_parameter_names(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, quantity = key.rpartition(":")
        state.setdefault(indices[name], {})[quantity] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _verified(path: Path) -> Checkpoint:
    header = unsealed(read_json(path / _HEADER, dict), path / _HEADER, required=True)
    for name, expected in header["sha256"].items():
        if not (path / name).is_file() or sha256(path / name) != expected:
            raise CheckpointError(f"{path / name} is not what was written (cut off or changed).")
    return Checkpoint(path, header["step"], header["science_hash"])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _parameter_names(model, optimizer)
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}:{name}": value for index, entry in state.items() for name, value in entry.items()}


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which the optimizer numbers its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
