"""Query, key and value of published checkpoints as timm's one projection."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mapet.errors import ModelError

_SPLIT_PROJECTION = re.compile(r"(?P<attention>.*\.attn)\.q\.(?P<kind>weight|bias)")


def join_qkv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`attn.q.*` and `attn.kv.*` (MaPeT's release: k first, then v) as timm's `attn.qkv.*`; other entries unchanged."""
    joined = dict(state_dict)
    for name in state_dict:
        match = _SPLIT_PROJECTION.fullmatch(name)
        if match:
            attention, kind = match["attention"], match["kind"]
            if f"{attention}.kv.{kind}" not in joined:
                raise ModelError(f"The weights have {name} but not {attention}.kv.{kind}.")
            parts = [joined.pop(name), joined.pop(f"{attention}.kv.{kind}")]
            joined[f"{attention}.qkv.{kind}"] = torch.cat(parts)
    return joined


def join_biases(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`attn.q_bias` and `attn.v_bias` (BEiT and its kin; keys have none) as timm's `attn.qkv.bias`; other entries unchanged."""
    joined = dict(state_dict)
    for name in state_dict:
        if name.endswith(".attn.q_bias"):
            attention = name.removesuffix(".q_bias")
            if f"{attention}.v_bias" not in joined:
                raise ModelError(f"The weights have {name} but not {attention}.v_bias.")
            query, value = joined.pop(name), joined.pop(f"{attention}.v_bias")
            joined[f"{attention}.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return joined
