"""How much is hidden, and drawing it, in a batch and on the device."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mapet.errors import ModelError

Corruption = TypeVar("Corruption")


@dataclass(frozen=True)
class MaskCorruption:
    """Which patches are hidden.

    Args:
        mask: (B, N_p) bool, True = hidden.
    """

    mask: Tensor
    _most: int | None = field(default=None, init=False, repr=False)
    _equal: bool = field(default=False, init=False, repr=False)

    @classmethod
    def of_known_counts(cls, mask: Tensor, most: int, *, equal: bool) -> MaskCorruption:
        """A mask of which is known how many patches it hides, so that nobody has to wait for the device to look.

        Args:
            mask: (B, N_p) bool, True = hidden.
            most: At most so many are hidden in an image.
            equal: Whether it is exactly so many in every image.
        """
        corruption = cls(mask)
        object.__setattr__(corruption, "_most", most)
        object.__setattr__(corruption, "_equal", equal)
        return corruption

    def hidden_patches(self) -> tuple[Tensor, Tensor | None]:
        """Hidden patches in raster order, (B, T) int64, and which of these slots hold one (None = all)."""
        order = self.mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        counts = self.mask.sum(dim=1, keepdim=True)
        most = int(counts.max()) if self._most is None else self._most
        valid = None if self._equal else torch.arange(most, device=counts.device) < counts
        return order[:, :most], valid


def count_of(option: str, value: float, of: int, least: int, most: int, things: str = "patches") -> int:
    """What an option means that takes a number of patches, or their share.

    Args:
        option: Its name, for the message.
        value: An integer is a number of patches; a float above 0 and below 1 a share, rounded to the nearest whole number
            (a half to the even one).
        of: How many patches there are.
        least: Smallest number allowed.
        most: Largest number allowed.
        things: What is counted, for the message.

    Raises:
        ModelError: It is neither, or gives a number that is not allowed.
    """
    is_share = isinstance(value, float) and 0 < value < 1
    is_number = isinstance(value, int) and not isinstance(value, bool)
    count = round(value * of) if is_share else value if is_number else None
    if count is None or not least <= count <= most:
        actual = f"{value!r} ({count} of {of})" if is_share else repr(value)
        raise ModelError(
            f"{option} is {actual}; with {of} {things} it must be an integer between {least} and {most}, or a share between 0 and "
            "1 that comes to as many."
        )
    return int(count)


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


def context_first(permutation: Tensor, hidden: Tensor) -> Tensor:
    """The permutation (B, N_p) with its visible patches before the `hidden` ones (B, N_p) bool, both in the order they had."""
    hidden_in_order = hidden.gather(1, permutation).to(torch.int8)
    return permutation.gather(1, hidden_in_order.argsort(dim=1, stable=True))


def narrow_corruption(corruption: Corruption, part: slice) -> Corruption:
    """The corruption of some images of a batch: every tensor field, sliced along the batch."""
    narrowed = copy.copy(corruption)
    for item in dataclasses.fields(corruption):  # type: ignore[arg-type]
        value = getattr(corruption, item.name)
        if isinstance(value, Tensor):
            object.__setattr__(narrowed, item.name, value[part])
    return narrowed
