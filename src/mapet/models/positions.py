"""Position embeddings, absolute or relative, for images of another size."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch

from mapet.compat import VisionTransformer, resample_abs_pos_embed
from mapet.models.backbone import blocks_of, grid_size
from mapet.models.relative_positions import resize_relative_positions
from mapet.models.spec import BackboneSpec
from mapet.models.weights import load_strictly

_RELATIVE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{_RELATIVE}"


def at_image_size(backbone: VisionTransformer, side: int) -> VisionTransformer:
    """A copy for square images of `side` pixels, a multiple of the patch size.

    Absolute positions are resized by bicubic interpolation without smoothing, relative ones by BEiT's splines: as where a published
    checkpoint is opened at another size (timm's own resizing differs from both).

    Args:
        backbone: A ViT or a Beit of timm; left as it is.
        side: In pixels.
    """
    resized = copy.deepcopy(backbone)
    old = grid_size(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on timm's way of resizing, which is replaced below
        resized.set_input_size(img_size=(side, side))
    new = grid_size(resized)
    if old == new:
        return resized
    before = dict(backbone.named_parameters())
    prefix = 0 if getattr(backbone, "no_embed_class", False) else backbone.num_prefix_tokens
    with torch.no_grad():
        for name, parameter in resized.named_parameters():
            if name == "pos_embed":
                table = before[name].detach()
                parameter.copy_(resample_abs_pos_embed(table, [*new], [*old], num_prefix_tokens=prefix, antialias=False))
            elif name.rpartition(".")[2] == _RELATIVE:
                parameter.copy_(resize_relative_positions(before[name].detach().cpu(), old, new))
    return resized


def with_own_tables(backbone: VisionTransformer, spec: BackboneSpec) -> tuple[VisionTransformer, BackboneSpec]:
    """A Beit whose blocks share one table of relative positions, as one with a copy in every block (added to its own, if it has
    one); any other as it is.

    BEiT and BEiT v2 are pre-trained with the shared table, and trained on labels with one in every block. Outputs are the same.

    Args:
        backbone: A ViT or a Beit of timm; left as it is.
        spec: How to build it.

    Returns:
        The backbone, and how to build it.
    """
    weights = backbone.state_dict()
    if _SHARED not in weights:
        return backbone, spec
    table = weights.pop(_SHARED)
    spec = replace(spec, options={**spec.options, "use_shared_rel_pos_bias": False, "use_rel_pos_bias": True})
    rebuilt = spec.build()
    names = [f"blocks.{number}.attn.{_RELATIVE}" for number, _ in enumerate(blocks_of(rebuilt))]
    load_strictly(rebuilt, {**weights, **{name: table + weights.get(name, 0.0) for name in names}})
    return rebuilt.to(table.device).train(backbone.training), spec
