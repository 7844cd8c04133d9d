"""From a backbone to a classifier: the same timm model with a head, and a list of which weights came along.

The paper's fine-tuning averages the patches and starts a new LayerNorm behind the average; the backbone's own last norm is dropped.
With the class token, that norm stays. Facts: the released code's loader (golden `finetune_load_*`) and BEiT's (`fc_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mapet.compat import VisionTransformer
from mapet.errors import ModelError, SettingsError
from mapet.evaluation.finetuning.settings import FineTuneSettings
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.models.positions import at_image_size, with_own_tables
from mapet.models.spec import BackboneSpec
from mapet.models.weights import load_strictly
from mapet.runtime.seeding import seeded_generator

HEAD_STD = 0.02
_GLOBAL_POOL = {"mean": "avg", "cls": "token"}
_FRESH = ("head.", "fc_norm.")


@dataclass(frozen=True)
class Transfer:
    """Which weights a model has from elsewhere.

    Args:
        kept: Taken over.
        dropped: Not taken over: the model has no place for them.
        new: The model's own, at their initialisation.
    """

    kept: list[str]
    dropped: list[str]
    new: list[str]

    def line(self) -> str:
        """For people, who check it once and then trust the figure."""
        if not self.kept:
            return "Weights: all new, at random initialisation; those of the backbone are not used."
        return (
            f"Weights: {len(self.kept)} kept; dropped: {', '.join(self.dropped) or 'none'}; new: {', '.join(self.new) or 'none'}."
        )


def transfer(weights: Mapping[str, Tensor], model: nn.Module) -> Transfer:
    """Loads what a classifier has a place for, except a head and a norm behind pooling, which start anew.

    Args:
        weights: Of a backbone or a whole pre-training, under timm's names.
        model: Loaded in place.

    Raises:
        ModelError: A weight of the blocks or embeddings is missing or has another shape.
    """
    expected = model.state_dict()
    transferred = {name: value for name, value in weights.items() if name in expected and not name.startswith(_FRESH)}
    load_strictly(model, transferred, optional=(*_FRESH, "norm."))
    dropped = [name for name in weights if name not in transferred]
    return Transfer([*transferred], dropped, [name for name in expected if name not in transferred])


def build_classifier(frozen: FrozenBackbone, settings: FineTuneSettings) -> tuple[nn.Module, BackboneSpec, Transfer]:
    """The model to train, its recipe with head and pooling, and what it has of the subject's backbone.

    Raises:
        SettingsError: The backbone has no class token, and pooling is to be by it.
        ModelError: timm cannot build the model.
    """
    if settings.pool == "cls" and frozen.backbone.cls_token is None:
        raise SettingsError("This backbone has no class token, so that pooling 'cls' is impossible. Use 'mean'.")
    start = frozen.spec.build() if settings.scratch else frozen.backbone
    backbone, spec = with_own_tables(start, frozen.spec)
    backbone = _resized(backbone, settings.image_size)
    spec = classifier_spec(spec, settings, frozen.num_classes, isinstance(backbone, VisionTransformer))
    model = replace(spec, options=spec.options | {"drop_path_rate": settings.drop_path}).build()
    transferred = transfer(backbone.state_dict(), model)
    init_head(cast(nn.Linear, model.head), settings)
    if settings.scratch:
        transferred = Transfer([], [], [*model.state_dict()])
    return model.to(frozen.device), spec, transferred


def classifier_spec(spec: BackboneSpec, settings: FineTuneSettings, num_classes: int, plain: bool = True) -> BackboneSpec:
    """The recipe of a backbone, with head and pooling.

    Args:
        spec: Of the backbone.
        settings: Of the fine-tuning.
        num_classes: Outputs of the head.
        plain: A plain ViT, not timm's Beit, which has another name for where the norm stands.
    """
    size = settings.image_size or spec.image_size
    norm = {"fc_norm" if plain else "use_fc_norm": settings.pool == "mean"}
    changes: dict[str, Any] = {"num_classes": num_classes, "global_pool": _GLOBAL_POOL[settings.pool], "img_size": size, **norm}
    return replace(spec, options=spec.options | changes, image_size=size, crop_fraction=settings.crop_fraction)


def init_head(head: nn.Linear, settings: FineTuneSettings) -> None:
    """Truncated normal of 0.02 times `head_init_scale`, a function of the seed; bias 0."""
    generator = seeded_generator(settings.seed, "head")
    nn.init.trunc_normal_(head.weight, std=HEAD_STD, generator=generator)
    with torch.no_grad():
        head.weight.mul_(settings.head_init_scale)
    nn.init.zeros_(head.bias)


def _resized(backbone: VisionTransformer, image_size: int | None) -> VisionTransformer:
    """The backbone itself, or a copy whose positions are resized to images of that side."""
    height, width = backbone.patch_embed.img_size  # type: ignore[misc]
    if image_size is None or image_size == height == width:
        return backbone
    patch = backbone.patch_embed.patch_size
    if any(image_size % side for side in patch):
        raise ModelError(f"image_size is {image_size}; allowed: a multiple of the patch size {max(patch)}.")
    return at_image_size(backbone, image_size)
