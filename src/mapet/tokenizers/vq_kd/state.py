"""Reads the state of a training that an earlier release wrote: one file, where there are checkpoints now."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mapet.engine.checkpoint import load_moments
from mapet.errors import CheckpointError, ModelError
from mapet.models.weights import load_strictly
from mapet.runtime.tensors import digest, open_tensors

_MODEL, _MOMENTS, _WINDOW = "model.", "optimizer.", "window"


def load_earlier_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, patches_per_image: int
) -> tuple[int, dict[str, Tensor]]:
    """Puts weights and optimizer state back, strictly; returns the number of steps, and the sums since the log's last line.

    Raises:
        CheckpointError: The file is damaged, or of another training.
    """
    try:
        with open_tensors(path) as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(metadata["step"])
        if metadata.get("sha256") not in (None, digest(tensors)):  # files of earlier releases have none
            raise ValueError("its content is not what was written")
        load_strictly(model, {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)})
        moments = {name.removeprefix(_MOMENTS): value for name, value in tensors.items() if name.startswith(_MOMENTS)}
        load_moments(model, optimizer, moments)
    except (SafetensorError, ModelError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Delete {path.parent} to start again from step 0.") from error
    return step, _window(tensors.get(_WINDOW, torch.empty(0, 3)), patches_per_image)


def _window(sums: Tensor, patches_per_image: int) -> dict[str, Tensor]:
    """Sums (n, 3) of commitment, reconstruction and patches as `TrainingLog.restore` takes them."""
    commitment, reconstruction, patches = sums.unbind(1)
    metrics = {"metrics.reconstruction": reconstruction, "metrics.commitment": commitment}
    images = (patches / patches_per_image).long()
    return {"images": images, "loss": commitment + reconstruction, "targets": patches, **metrics} if len(sums) else {}
