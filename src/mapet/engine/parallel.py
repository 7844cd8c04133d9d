"""Several processes that train one model: losses, masks and weights do not depend on their number.

Every process takes its rows of each global batch. What is drawn at random is drawn for the whole batch in every process, which then
takes its rows; sums over targets and gradients are added up over all processes. So one process, two or three take the same steps,
up to the rounding of sums in another order.

This is also the only place with activation checkpointing, `torch.compile` and sharded weights. They are applied in this
order. Where weights are sharded (FSDP2), every process holds a part of each, and of the optimizer's state. A block gathers its
weights for as long as it computes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mapet.compat import Block, DropPath
from mapet.errors import ModelError, SettingsError
from mapet.models.two_stream import run_block
from mapet.runtime.processes import Processes, all_sum_, gather_numbers

Mode = Literal["ddp", "fsdp", "hsdp"]

_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"  # before torch 2.13


@dataclass(frozen=True)
class GlobalRows:
    """Where the images of this process are in the global batch.

    Args:
        start: Images of the processes before it.
        count: Its own.
        total: Of all processes.
        most: Of the process that has most.
    """

    start: int
    count: int
    total: int
    most: int

    @classmethod
    def of(cls, count: int, processes: Processes) -> GlobalRows:
        """Exchanges how many images each process has; fewer than planned where some could not be read."""
        if processes.world == 1:
            return cls(0, count, count, count)
        counts = gather_numbers(count)
        return cls(sum(counts[: processes.rank]), count, sum(counts), max(counts))

    @property
    def slice(self) -> slice:
        """The rows of this process."""
        return slice(self.start, self.start + self.count)

    def part(self, part: slice) -> GlobalRows:
        """Some of the images of this process, such as a micro-batch."""
        first, last, _ = part.indices(self.count)
        return GlobalRows(self.start + first, max(0, last - first), self.total, self.most)


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


@dataclass(frozen=True)
class Execution:
    """How the passes of a model are computed; never what they compute.

    Args:
        mode: Over several processes: "ddp", every one holds all weights; "fsdp", each holds a part of them; "hsdp", the processes
            of one machine share them, and every machine has all.
        precision: "fp32" or "bf16"; on CUDA, sharded blocks gather their weights in it.
        checkpointing: Compute the activations of a block again in the backward pass instead of keeping them.
        compiler: Of the blocks, a backend of `torch.compile`; None compiles nothing.
    """

    mode: Mode = "ddp"
    precision: str = "fp32"
    checkpointing: bool = False
    compiler: str | None = None


class DataParallel:
    """Forward passes whose gradients are added up over all processes, by torch's DistributedDataParallel or FSDP2.

    With one process the model is called as it is. Where weights are sharded, the parameters of `model` are other objects
    afterwards: make the optimizer later.

    Args:
        model: On its device; every process has the same weights.
        processes: This process among all.
        unused: Whether some weights take no part in the loss.
        execution: How passes are computed.
    """

    def __init__(self, model: nn.Module, processes: Processes, unused: bool = False, execution: Execution | None = None) -> None:
        execution = execution or Execution()
        self._world = processes.world
        self._model: Any = model
        self._is_sharded = processes.world > 1 and execution.mode != "ddp"
        if execution.checkpointing:
            _checkpoint_activations(model)
        if execution.compiler is not None:
            _compile_blocks(model, execution.compiler)
        if self._is_sharded:
            _shard(model, processes, execution)
        elif processes.world > 1:
            # Of a process with one image: the gradient of an expanded token is a slice. It is only slower, and hardly.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
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
                "Some weights take no part in the loss, and several processes cannot detect which. Name them in the attribute "
                "`unused` of the objective, or train in one process."
            ) from error

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the backward pass of the last micro-batch only; around forward and backward."""
        if self._is_sharded:
            self._model.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last or self._world == 1 else self._model.no_sync()

    def divisor(self, targets: Tensor) -> Tensor:
        """What to divide gradients by, so that they are those of the mean over the targets of all processes.

        Args:
            targets: Scalar, their number in all processes.
        """
        count = targets.clamp(min=1)
        return count if self._world == 1 else count / self._world  # both give the mean over processes


def sum_over_processes(sums: dict[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Scalars added up over all processes, each of its own type."""
    if processes.world == 1:
        return sums
    together = all_sum_(torch.stack([value.double() for value in sums.values()]))
    return {name: value.to(sums[name].dtype) for name, value in zip(sums, together.unbind(), strict=True)}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is sharded; every process calls this. Any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[operator]


def is_sharded(tensor: Tensor) -> bool:
    """Whether every process holds a part of `tensor` only."""
    return hasattr(tensor, "full_tensor")


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of `module` with whole tensors, those that were sharded on the CPU; every process calls this."""
    return {name: whole(value).cpu() if is_sharded(value) else value for name, value in module.state_dict().items()}


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Inside the block, parts of `model` can be called by themselves, also where weights are sharded; every process calls this."""
    unshard, reshard = getattr(model, "unshard", None), getattr(model, "reshard", None)
    if unshard is None or reshard is None:
        yield
        return
    unshard()
    try:
        yield
    finally:
        reshard()


def _checkpoint_activations(model: nn.Module) -> None:
    """Switches on timm's, in every network that is trained."""
    for module in model.modules():
        switch = getattr(module, "set_grad_checkpointing", None)
        if switch is not None and any(parameter.requires_grad for parameter in module.parameters()):
            switch(True)


def _compile_blocks(model: nn.Module, compiler: str) -> None:
    """Compiles each block by itself: equal blocks share their code, and what lies between them stays as it is."""
    two_streams: Any = torch.compile(run_block, backend=compiler)
    for block in _blocks(model):
        block.compile(backend=compiler)
        block.both_streams = MethodType(two_streams, block)  # type: ignore[assignment]


def _shard(model: nn.Module, processes: Processes, execution: Execution) -> None:
    """Shards the weights of every block by itself, and then all others together, over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    shape: tuple[int, ...] = (processes.world,)
    if execution.mode == "hsdp":
        machines, rest = divmod(processes.world, processes.local_world)
        if rest:
            raise SettingsError(
                f"mechanics.parallel=hsdp needs equally many processes on every machine; {processes.world} processes are no "
                f"multiple of the {processes.local_world} on this one. Use fsdp, or start the same number everywhere."
            )
        shape = (machines, processes.local_world)
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, shape, mesh_dim_names=("machine", "process")[-len(shape) :])
    # Under autocast the sums between blocks stay in float32, and so do the weights that no block holds. The CPU has no layer
    # norm of float32 rows with bfloat16 weights.
    low = torch.bfloat16 if execution.precision == "bf16" and device == "cuda" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False)
    for block in _blocks(model):
        if not hasattr(block, "both_streams"):
            block.both_streams = MethodType(run_block, block)  # type: ignore[assignment]
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "both_streams")
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of all networks in `model`."""
    return [module for module in model.modules() if isinstance(module, Block)]
