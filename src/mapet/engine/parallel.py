"""Several processes that train one model: losses, masks and weights do not depend on their number.

Every process takes its rows of each global batch. What is drawn at random is drawn for the whole batch in every process, which then
takes its rows; sums over targets and gradients are added up over all processes. So one process, two or three take the same steps,
up to the rounding of sums in another order.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mapet.compat import DropPath
from mapet.errors import ModelError
from mapet.runtime.processes import Processes, all_sum_, gather_numbers

_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"  # before torch 2.13


@dataclass(frozen=True)
class GlobalRows:
    """Where the images of this process are in the global batch.

    Args:
        start: Images of the processes before it.
        count: Its own.
        total: Of all processes.
    """

    start: int
    count: int
    total: int

    @classmethod
    def of(cls, count: int, processes: Processes) -> GlobalRows:
        """Exchanges how many images each process has; fewer than planned where some could not be read."""
        if processes.world == 1:
            return cls(0, count, count)
        counts = gather_numbers(count)
        return cls(sum(counts[: processes.rank]), count, sum(counts))

    @property
    def slice(self) -> slice:
        """The rows of this process."""
        return slice(self.start, self.start + self.count)

    def part(self, part: slice) -> GlobalRows:
        """Some of the images of this process, such as a micro-batch."""
        first, last, _ = part.indices(self.count)
        return GlobalRows(self.start + first, max(0, last - first), self.total)


class GlobalDropPath(DropPath):
    """timm's drop path, drawn for the images of all processes and micro-batches; each takes its rows.

    A batch of another size than announced is drawn for as timm does.
    """

    place: Place

    def forward(self, x: Tensor) -> Tensor:
        """Of (B, ...), or of the rows of B images that `place` announces."""
        rows = self.place.rows
        if self.drop_prob == 0.0 or not self.training or rows is None or rows.count != len(x):
            return super().forward(x)
        keep = 1 - self.drop_prob
        draws = x.new_empty((rows.total,) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0 and self.scale_by_keep:
            draws.div_(keep)
        return x * draws[rows.slice]


class Place:
    """Announces to every drop path of a model which images come next."""

    rows: GlobalRows | None = None


def place_drop_paths(model: nn.Module) -> Place:
    """Makes all drop paths of `model` draw for the global batch; names and numbers of weights stay as they are."""
    place = Place()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.__class__ = GlobalDropPath
            module.place = place  # type: ignore[assignment]
    return place


class DataParallel:
    """Forward passes whose gradients are added up over all processes, by torch's DistributedDataParallel.

    With one process the model is called as it is.

    Args:
        model: On its device; every process has the same weights.
        processes: This process among all.
        unused: Whether some weights take no part in the loss.
    """

    def __init__(self, model: nn.Module, processes: Processes, unused: bool = False) -> None:
        self._world = processes.world
        self._model: Any = model
        if processes.world > 1:
            buffers: dict[str, Any] = {_SYNC_BUFFERS: False}  # every process computes the same ones
            self._model = DistributedDataParallel(model, find_unused_parameters=unused, **buffers)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What `model(*inputs, **options)` gives.

        Raises:
            ModelError: Some weights took no part in the loss of the last step, which was not announced.
        """
        try:
            return self._model(*inputs, **options)
        except RuntimeError as error:
            if "Expected to have finished reduction" not in str(error):
                raise
            raise ModelError(
                "Some weights take no part in the loss, and several processes cannot tell which. Name them in the attribute "
                "`unused` of the objective, or train in one process."
            ) from error

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the backward pass of the last micro-batch only; around forward and backward."""
        return nullcontext() if is_last or self._world == 1 else self._model.no_sync()

    def divisor(self, targets: Tensor) -> Tensor:
        """What to divide gradients by, so that they are those of the mean over the targets of all processes.

        Args:
            targets: Scalar, their number in all processes.
        """
        count = targets.clamp(min=1)
        return count if self._world == 1 else count / self._world  # DistributedDataParallel gives the mean over processes


def sum_over_processes(sums: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Scalars added up over all processes, each of its own type."""
    if processes.world == 1:
        return sums
    together = all_sum_(torch.stack([value.double() for value in sums.values()]))
    return {name: value.to(sums[name].dtype) for name, value in zip(sums, together.unbind(), strict=True)}
