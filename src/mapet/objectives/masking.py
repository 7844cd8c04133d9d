"""Drawing what is hidden, in a batch and on the device."""

from __future__ import annotations

import copy
import dataclasses
from typing import TypeVar

import torch
from torch import Tensor

Corruption = TypeVar("Corruption")


def random_permutation(batch_size: int, num_patches: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """A uniformly random permutation for every image, (B, N_p) int64."""
    noise = torch.rand(batch_size, num_patches, generator=generator, device=generator.device)
    return noise.to(device, non_blocking=True).argsort(dim=1)


def random_mask(
    batch_size: int, num_patches: int, num_masked: int, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """A uniformly random set of `num_masked` hidden patches for every image, (B, N_p) bool, True = hidden."""
    ranks = random_permutation(batch_size, num_patches, generator, device)
    return ranks < num_masked


def narrow_corruption(corruption: Corruption, part: slice) -> Corruption:
    """The corruption of some images of a batch: every tensor field, sliced along the batch."""
    narrowed = copy.copy(corruption)
    for field in dataclasses.fields(corruption):  # type: ignore[arg-type]
        value = getattr(corruption, field.name)
        if isinstance(value, Tensor):
            object.__setattr__(narrowed, field.name, value[part])
    return narrowed
