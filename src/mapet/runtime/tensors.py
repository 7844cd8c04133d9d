"""Tensors on disk: one way to write them, whose failures are those of any other file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mapet.runtime.regular import open_regular


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names and bytes, so that a file can be compared with what was written."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        hasher.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def open_tensors(path: Path) -> Any:
    """A safetensors file, opened by `safe_open` as a context; nothing but a regular file is.

    Raises:
        OSError: As `open_regular`.
        SafetensorError: It is damaged.
    """
    open_regular(path).close()
    return safe_open(path, framework="pt")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; raises what `open_tensors` raises."""
    open_regular(path).close()
    return load_file(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file from tensors on any device; call it inside `atomic_file` or `atomic_directory`.

    Args:
        path: The file.
        tensors: By name; tensors that share memory are written as if each had its own.
        metadata: Kept in the file's header.

    Raises:
        OSError: The disk is full or not writable; safetensors reports that in an exception of its own.
    """
    copies: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        copies[name] = copy.clone() if copy.untyped_storage().data_ptr() in storages else copy
        storages.add(copy.untyped_storage().data_ptr())
    try:
        save_file(copies, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
