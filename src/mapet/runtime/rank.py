"""Which of several processes this one is, as torchrun announces it in the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mapet.errors import SettingsError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Args:
        rank: Its number, from 0.
        world: How many there are.
        local_rank: Its number on this machine, which is also that of its GPU.
        local_world: How many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    def device(self, device: torch.device | str) -> torch.device:
        """`device`, where "cuda" of several processes becomes this one's own GPU."""
        import torch

        device = torch.device(device)
        needs_index = device.type == "cuda" and device.index is None and self.world > 1
        return torch.device("cuda", self.local_rank) if needs_index else device

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The part of `items` that this process works on.

        The parts of all processes, in the order of their ranks, are `items`. Their lengths differ by one at most.
        """
        first, last = (len(items) * number // self.world for number in (self.rank, self.rank + 1))
        return [*items[first:last]]


def this_process() -> Processes:
    """The values of RANK, WORLD_SIZE and LOCAL_RANK, set by torchrun; a single process without torchrun.

    Raises:
        SettingsError: The variables are incomplete or contradict each other.
    """
    world = _number("WORLD_SIZE", 1, 1)
    if world == 1:
        return Processes()
    rank, local_rank = (_number(name, None, 0, world - 1) for name in ("RANK", "LOCAL_RANK"))
    return Processes(rank, world, local_rank, _number("LOCAL_WORLD_SIZE", world, 1, world))


def this_process_is_first() -> bool:
    """Whether this is the process that writes to the terminal and to files; also where torchrun's variables are incomplete."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _number(name: str, default: int | None, lowest: int, highest: int | None = None) -> int:
    """An integer from the environment."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < lowest or (highest is not None and int(text) > highest):
        allowed = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
        raise SettingsError(
            f"The environment variable {name} is '{text}'. Allowed: {allowed}. torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; "
            "without it, unset WORLD_SIZE."
        )
    return int(text)
