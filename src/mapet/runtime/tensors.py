"""Tensors on disk: one way to write them, whose failures are those of any other file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names and bytes, so that a file can be compared with what was written."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file from tensors on any device; call it inside `atomic_file` or `atomic_directory`.

    Args:
        path: The file.
        tensors: By name; tensors that share memory are written as if each had its own.
        metadata: Kept in the file's header.

    Raises:
        OSError: The disk is full or not writable; safetensors reports that in an exception of its own.
    """
    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        own[name] = copy.clone() if copy.untyped_storage().data_ptr() in storages else copy
        storages.add(copy.untyped_storage().data_ptr())
    try:
        save_file(own, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
