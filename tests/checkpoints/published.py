"""Checkpoints in published forms, with small random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.golden import GOLDENS

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights at which every term shows: none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        spread = 0.3 if parameter.ndim < 2 or "token" in name or "position" in name else parameter.shape[-1] ** -0.5
        centre = 1.0 if re.search(r"norm\w*\.weight|gamma|lambda", name) else 0.0
        with torch.no_grad():
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def published_shapes(file: str, model: str, *, factor: int, depth: int) -> dict[str, Tensor]:
    """Random weights under the published names, `factor` times narrower and with `depth` blocks.

    Grid, patch and heads stay: only widths that belong to tokens are divided.
    """
    names = json.loads((GOLDENS / "mim" / f"published_shapes_{file}.json").read_text())[model]["keys"]
    width = names["cls_token" if "cls_token" in names else "encoder.cls_token"][-1]
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, shape in names.items():
        block = re.match(r"(?:encoder\.)?blocks\.(\d+)\.", name)
        if block and int(block[1]) >= depth:
            continue
        if name.endswith("relative_position_index"):
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        sizes = [size // factor if size % width == 0 or size * 2 == width else size for size in shape]
        tensors[name] = torch.randn(sizes, generator=generator) * 0.2
    return tensors


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path
