"""A summary of the contents of an unknown file of weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

_MOST_LINES = 40


def listing(tensors: Mapping[str, Tensor]) -> str:
    """Lines for people: how many tensors stand below each first part of a name, then every name with its shape.

    Numbers within names become N, so that the layers of a network make one line: "blocks.N.norm1.weight  (384,)  12 times".
    """
    top = Counter(name.partition(".")[0] for name in tensors)
    kinds: Counter[tuple[str, str]] = Counter()
    for name, value in tensors.items():
        kinds[re.sub(r"(?<![^.])\d+(?![^.])", "N", name), _shape(value)] += 1
    width = max(len(name) for name, _ in kinds)
    lines = [f"{name:{width}}  {shape}{f'  {count} times' if count > 1 else ''}" for (name, shape), count in kinds.items()]
    left = len(lines) - _MOST_LINES
    more = [f"and {left} more kinds"] if left > 0 else []
    counts = ", ".join(f"{name} ({count})" for name, count in top.most_common(12))
    return "\n".join([f"{len(tensors)} tensors: {counts}", *lines[:_MOST_LINES], *more])


def _shape(value: Tensor) -> str:
    kind = "" if value.is_floating_point() else f" {str(value.dtype).removeprefix('torch.')}"
    return f"({', '.join(map(str, value.shape))}){kind}"
