"""Checkpoints that are either complete or not there.

    checkpoints/step-00001500/model.safetensors       what is trained, such as the objective: backbone, mask token, head
                              optimizer.safetensors   AdamW's moments and step counts, by parameter name
                              window.safetensors      sums since the last line of the log, what monitors have gathered; if any
                              checkpoint.json         step, hash of the science, SHA-256 of all files and of itself

Nothing else is needed to continue exactly: order, corruption, jitter and drop path are functions of the step. A folder is written
beside its place and renamed when everything in it is on disk; a damaged one is passed over for the one before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mapet.errors import CheckpointError
from mapet.models.weights import load_strictly
from mapet.runtime.files import atomic_directory, remove_leftovers, sha256, storage_errors, write_json
from mapet.runtime.json_files import read_json, sealed, unsealed
from mapet.runtime.progress import say
from mapet.runtime.tensors import load_tensors, write_tensors

_FILES = ("model.safetensors", "optimizer.safetensors")
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
) -> Checkpoint:
    """Writes the state after `step` steps below `folder`, then removes all others but the `keep` - 1 before it.

    Checkpoints of later steps are removed too: had they been whole, the run would have continued from them.

    Raises:
        StorageError: The disk is full or not writable; older checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, "step-*")
    with atomic_directory(path) as partial:
        write_tensors(partial / _FILES[0], model.state_dict())
        write_tensors(partial / _FILES[1], _optimizer_tensors(model, optimizer))
        if window:
            write_tensors(partial / _WINDOW, window)
        checksums = {name: sha256(partial / name) for name in (*_FILES, *([_WINDOW] if window else []))}
        header = {"step": step, "science_hash": science_hash, "sha256": checksums}
        write_json(partial / _HEADER, sealed(header))
    others = sorted(folder.glob("step-*"))
    newest = [other for other in others if other.name <= path.name][-keep:]
    for other in others:
        if other not in newest:
            shutil.rmtree(other, ignore_errors=True)
    return Checkpoint(path, step, science_hash)


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
    """Puts weights and optimizer state back, strictly."""
    load_strictly(model, load_tensors(checkpoint.path / _FILES[0]))
    load_moments(model, optimizer, load_tensors(checkpoint.path / _FILES[1]))


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
