"""Which device to use, and the numbers it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mapet.errors import SettingsError


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, then Apple's GPU, then the CPU.

    Raises:
        SettingsError: The name is not a device, or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    allowed = "Allowed: auto, cpu, cuda, cuda:N, mps."
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"There is no device '{name}' to train on. {allowed}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SettingsError(f"The device '{name}' cannot be used here: {reason}. {allowed}") from None
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context in which matrix products run in `precision`: "fp32" as they are, "bf16" under autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class _Unfilled(TorchFunctionMode):
    """Numbers are not drawn for tensors without memory; torch's Python code for that is slow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


_FILLING = {Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_}


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are built in this block have shapes and no memory for their weights."""
    with torch.device("meta"), _Unfilled():
        yield
