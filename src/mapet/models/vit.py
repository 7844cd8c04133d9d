"""Backbones that can be evaluated: every plain ViT, and timm's Beit, in which BEiT's published weights fit.

Beit has relative positions, as BEiT and BEiT v2 were published with. Objectives run on plain ViTs only (`create_backbone`), so
that a Beit is for evaluation and export.
"""

from __future__ import annotations

from typing import Any, cast

from mapet.compat import VisionTransformer, timm
from mapet.errors import ModelError
from mapet.models.backbone import build_by_timm, check_parts, create_backbone, image_size, num_heads


def is_beit(name: str) -> bool:
    """Whether timm builds a Beit under this name."""
    return timm.is_model(name) and timm.models.model_entrypoint(name).__module__ == "timm.models.beit"


def create_vit(name: str, **timm_kwargs: Any) -> VisionTransformer:
    """`timm.create_model(name, **timm_kwargs)`, a plain ViT or a Beit; the latter has what evaluations use of the former.

    Raises:
        ModelError: timm has no such model, refuses the arguments, its weights cannot be had, or the model is neither.
    """
    if not is_beit(name):
        network = create_backbone(name, **timm_kwargs)
    else:
        network = check_parts(cast(VisionTransformer, build_by_timm(name, **timm_kwargs)))
        if network.embed_dim % num_heads(network):  # timm checks it of plain ViTs only
            raise ModelError(
                f"The width {network.embed_dim} (embed_dim) is no multiple of the {num_heads(network)} heads (num_heads)."
            )
    channels, (height, width) = network.patch_embed.proj.in_channels, image_size(network)
    if channels != 3:
        raise ModelError(f"'{name}' takes images of {channels} channels (in_chans); images are read here with three. Leave it out.")
    if height != width:
        raise ModelError(
            f"'{name}' takes images of {height} x {width} pixels (img_size); images are square here. Give one number, such as "
            f"img_size={max(height, width)}; weights that were trained on a rectangle must be resized first."
        )
    return network
