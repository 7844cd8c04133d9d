"""Arrays that published implementations gave, with the JSON that describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(__file__).resolve().parent / "goldens"


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a golden such as "mapet/model_tiny_m1_a"."""
    description = json.loads((GOLDENS / f"{name}.json").read_text())
    return description, load_file(GOLDENS / f"{name}.safetensors")


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
