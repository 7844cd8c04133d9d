"""How far one optimizer step moves each part of a network, relative to the size of its weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mapet.engine.parallel import whole
from mapet.objectives.base import Objective


class UpdateMeter:
    """Measures |w after - w before| / |w before| of single steps, on the device until `read`.

    Args:
        objective: Whose parameters are watched: all of the backbone that can get a gradient, and those of its own that are trained.
    """

    def __init__(self, objective: Objective) -> None:
        self.parts = parts_of(objective)
        self._before: dict[str, list[Tensor]] = {}

    def before_step(self) -> None:
        """Keeps the weights as they are now."""
        self._before = {name: [weight.detach().clone() for weight in weights] for name, weights in self.parts.items()}

    @property
    def pending(self) -> bool:
        """Whether there is a step to read."""
        return bool(self._before)

    @torch.no_grad()
    def read(self) -> dict[str, tuple[float, float]]:
        """For every part (moved, weight), two Euclidean norms; waits for the device and forgets the weights that were kept."""
        moved = [
            whole(get_total_norm([now.detach() - old for now, old in zip(self.parts[name], olds, strict=True)]))
            for name, olds in self._before.items()
        ]
        sizes = [whole(get_total_norm(olds)) for olds in self._before.values()]
        norms = torch.stack([torch.stack(moved), torch.stack(sizes)], dim=1).tolist()
        names, self._before = [*self._before], {}
        return {name: (step, size) for name, (step, size) in zip(names, norms, strict=True)}


def parts_of(objective: Objective) -> dict[str, list[nn.Parameter]]:
    """Parameters by part: patch_embed, embeddings (class token, positions), blocks.0 ..., norm, and head: what the objective adds.

    Parameters that the objective never trains (`Objective.unused`, and its own without gradient, such as a teacher's) are left out.
    """
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if re.match(objective.unused, name):
            continue
        inside = name.removeprefix("backbone.")
        if inside == name:
            if parameter.requires_grad:
                parts.setdefault("head", []).append(parameter)
        else:
            parts.setdefault(_part(inside), []).append(parameter)
    return parts


def group_of(part: str) -> str:
    """What a part is logged under: all blocks together."""
    return part.partition(".")[0]


def ratios_by_group(norms: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Relative updates of patch_embed, embeddings, blocks, norm and head from the norms of their parts."""
    squares: dict[str, tuple[float, float]] = {}
    for part, (moved, size) in norms.items():
        before = squares.get(group_of(part), (0.0, 0.0))
        squares[group_of(part)] = before[0] + moved**2, before[1] + size**2
    return {group: (moved / max(size, 1e-24)) ** 0.5 for group, (moved, size) in squares.items()}


def _part(name: str) -> str:
    """The part of a backbone that one of its parameters belongs to."""
    pieces = name.split(".")
    if pieces[0] == "blocks":
        return f"blocks.{pieces[1]}"
    return "patch_embed" if pieces[0] == "patch_embed" else "embeddings" if len(pieces) == 1 else "norm"
