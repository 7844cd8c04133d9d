"""Drawing what is hidden, in a batch and on the device."""

from __future__ import annotations

import torch
from torch import Tensor


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
