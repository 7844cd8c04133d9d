"""The state of a training in one file, which is either the newest complete one or the one before it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mapet.errors import CheckpointError, ModelError
from mapet.models.weights import load_strictly
from mapet.runtime.files import atomic_file
from mapet.runtime.tensors import digest, open_tensors, write_tensors

_MODEL, _MOMENTS, _WINDOW = "model.", "optimizer.", "window"


def save_state(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, window: Tensor) -> None:
    """Writes weights and the optimizer's state after `step` steps, and the sums (n, 3) of the steps since the last line of the log.

    Raises:
        StorageError: The disk is full or not writable; the file before it is untouched.
    """
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    names = _parameter_names(model, optimizer)
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"{_MOMENTS}{names[index]}:{quantity}": value for quantity, value in entry.items()}
    tensors[_WINDOW] = window
    with atomic_file(path) as partial:
        write_tensors(partial, tensors, {"step": str(step), "sha256": digest(tensors)})


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Tensor]:
    """Puts both back, strictly, and returns the number of steps taken and the sums; 0 and none where there is no such file.

    Raises:
        CheckpointError: The file is damaged, or of another training.
    """
    if not path.exists():
        return 0, torch.empty(0, 3)
    try:
        with open_tensors(path) as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(metadata["step"])
        if metadata.get("sha256") not in (None, digest(tensors)):  # files of earlier releases have none
            raise ValueError("its content is not what was written")
        load_strictly(model, {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)})
        _load_moments(model, optimizer, tensors)
    except (SafetensorError, ModelError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Delete {path.parent} to start again from step 0.") from error
    return step, tensors.get(_WINDOW, torch.empty(0, 3))


def _load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    indices = {name: index for index, name in enumerate(_parameter_names(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_MOMENTS):
            name, _, quantity = key.removeprefix(_MOMENTS).rpartition(":")
            state.setdefault(indices[name], {})[quantity] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which the optimizer numbers its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
