"""Weights of a network: how they start, how they are loaded, and what names them (a fingerprint)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapet.errors import ModelError


def init_linears(module: nn.Module) -> None:
    """Linear layers of `module`: truncated normal of 0.02, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def load_strictly(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    optional: tuple[str, ...] = (),
    file: Path | None = None,
    way_out: str = "",
) -> None:
    """Loads every entry or none.

    Args:
        module: What is loaded into.
        state_dict: Its entries under the names of `module`.
        optional: Prefixes of names that may be absent from `state_dict`; they keep their values.
        file: Where the entries are from, for the message.
        way_out: What to do where they do not fit, a sentence.

    Raises:
        ModelError: Lists what is missing, what is left over and what has another shape.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state_dict and not name.startswith(optional)]
    unexpected = [name for name in state_dict if name not in expected]
    reshaped = [
        f"{name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in state_dict.items()
        if name in expected and value.shape != expected[name].shape
    ]
    complaints = [
        f"{title}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}."
        for title, names in (("Missing", missing), ("Not known here", unexpected), ("Of another shape", reshaped))
        if names
    ]
    if complaints:
        whose = "These weights" if file is None else f"The weights in {file}"
        raise ModelError(f"{whose} do not fit {type(module).__name__}. {' '.join(complaints)} {way_out}".rstrip())
    module.load_state_dict(dict(state_dict), strict=False)


def fingerprint(module: nn.Module, facts: Mapping[str, Any]) -> str:
    """SHA-256 over `facts`, which are JSON, and every tensor of `module`, in hex."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
