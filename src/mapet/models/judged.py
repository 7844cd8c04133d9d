"""Backbones that can be judged: every plain ViT, and timm's Beit, in which BEiT's published weights fit.

Beit has relative positions, as BEiT and BEiT v2 were published with. Objectives run on plain ViTs only (`create_backbone`), so
that a Beit is for evaluation and export.
"""

from __future__ import annotations

from typing import Any, cast

from mapet.compat import VisionTransformer, timm
from mapet.models.backbone import build_by_timm, create_backbone


def is_beit(name: str) -> bool:
    """Whether timm builds a Beit under this name."""
    return timm.is_model(name) and timm.models.model_entrypoint(name).__module__ == "timm.models.beit"


def create_judged(name: str, **timm_kwargs: Any) -> VisionTransformer:
    """`timm.create_model(name, **timm_kwargs)`, a plain ViT or a Beit; the latter has what evaluations use of the former.

    Raises:
        ModelError: timm has no such model, refuses the arguments, its weights cannot be had, or the model is neither.
    """
    if not is_beit(name):
        return create_backbone(name, **timm_kwargs)
    return cast(VisionTransformer, build_by_timm(name, **timm_kwargs))
