"""Batch norm in each of several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapet.engine.whole_batch import place_whole_batch
from mapet.runtime.processes import process_group

NORM = "tests.engine.whole_batch_on_ranks:norm"


def images() -> Tensor:
    """Far from mean 0, so that a variance as the difference of two means would not do."""
    return 100 + torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()


def normed(norm: nn.BatchNorm2d, some: Tensor, first: int = 0) -> dict[str, Tensor]:
    """What a layer gives for images of a batch, `first` and following, with gradients of an uneven sum of it."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    some = some.clone().requires_grad_()
    output = norm(some)
    weights = torch.arange(images().numel(), dtype=torch.float64).view_as(images()).sin()[first : first + len(some)]
    (output * output * weights).sum().backward()
    assert some.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    found = {"output": output.detach(), "input_gradient": some.grad, "weight_gradient": norm.weight.grad}
    return found | {"bias_gradient": norm.bias.grad, "mean": norm.running_mean, "variance": norm.running_var}


def norm(folder: Path) -> dict[str, Any]:
    """Rank 0 has two images, rank 1 none, rank 2 three."""
    with process_group("cpu") as processes:
        norm = nn.BatchNorm2d(3).double()
        place_whole_batch(nn.Sequential(norm), processes)
        first, last = [(0, 2), (2, 2), (2, 5)][processes.rank]
        return {name: value.tolist() for name, value in normed(norm, images()[first:last], first).items()}
