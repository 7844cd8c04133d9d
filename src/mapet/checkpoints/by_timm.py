"""Checkpoints that only timm can convert, such as CLIP's image tower."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mapet.checkpoints.contents import listing
from mapet.checkpoints.entries import Entry, TensorMap
from mapet.checkpoints.families import Family, Published
from mapet.compat import timm
from mapet.errors import ModelError
from mapet.models.vit import create_vit
from mapet.runtime.device import without_memory


def translated_by_timm(tensors: Mapping[str, Tensor], model: str, options: Mapping[str, Any], title: str) -> Published:
    """The entries under the names of timm's `model`, as timm itself translates its sources.

    Args:
        tensors: Of the file, under its own names.
        model: A timm model.
        options: Keyword arguments of `timm.create_model`.
        title: What to call the file in messages.

    Raises:
        ModelError: timm cannot translate them either; the message lists what the file contains.
    """
    with without_memory():
        network = create_vit(model, **options)
    translate = sys.modules[timm.models.model_entrypoint(model).__module__].__dict__["checkpoint_filter_fn"]
    try:
        translated: dict[str, Tensor] = translate(dict(tensors), network)
    except (KeyError, IndexError, AttributeError, RuntimeError, TypeError, ValueError):  # made for other names than these
        translated = {}
    expected = network.state_dict()
    entries = _traced(tensors, {name: value for name, value in translated.items() if name in expected})
    if not entries:
        raise ModelError(f"{title} is no checkpoint of '{model}', nor any other that is known here. It contains {listing(tensors)}")
    used = {source for entry in entries.values() for source in entry.sources}
    config = timm.get_pretrained_cfg(model)
    data: dict[str, Any] = {"mean": config.mean, "std": config.std} if config else {}
    family = Family(f"checkpoint that timm translates for '{model}'", (), **data, apart=getattr(network, "no_embed_class", False))
    return Published(family, entries, tuple(name for name in tensors if name not in used))


def _traced(tensors: Mapping[str, Tensor], translated: Mapping[str, Tensor]) -> TensorMap:
    """Each tensor with the entry of the file that its numbers lie in, if they lie in one."""
    places = {value.data_ptr(): name for name, value in tensors.items() if value.numel()}
    entries = TensorMap()
    for name, value in translated.items():
        source = places.get(value.data_ptr()) or (name if name in tensors else None)
        sources = () if source is None else (source,)
        changed = source is not None and places.get(value.data_ptr()) is None
        entries[name] = Entry(value, sources, changed)
    return entries
