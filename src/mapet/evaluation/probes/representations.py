"""Features of a frozen backbone beyond its last layer: raw outputs of every block, and tokens that are not pooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.data.batch import LoadedBatch
from mapet.data.source import ImageSource
from mapet.data.views import EvaluationView, FixedView, View, normalise
from mapet.evaluation.frozen_backbone import FeatureSet, FrozenBackbone, as_all_have_it, refuse_non_finite
from mapet.models.backbone import normed_tokens
from mapet.runtime.processes import errors_in_all, gather_rows

Describe = Callable[[Tensor], Tensor]


def evaluation_view(size: int, crop_fraction: float) -> View:
    """The central part of an image: as in pre-training if `crop_fraction` is 1, as in `EvaluationView` below 1."""
    return FixedView(size) if crop_fraction == 1 else EvaluationView(size, crop_fraction)


def describe_all(frozen: FrozenBackbone, source: ImageSource, view: View, describe: Describe, part: str) -> tuple[Tensor, Tensor]:
    """The results of `describe` for every readable image of `source`, in its order.

    Args:
        frozen: For its workers, its device and its count of unreadable images.
        source: Labelled images.
        view: How they are seen.
        describe: From uint8 images (B, 3, H, W) to (B, ...).
        part: What to call the images.

    Returns:
        (n, ...) and the labels (n,) int64, on the subject's device.

    Raises:
        ModelError: Something of it is not finite.
    """

    def described(loaded: LoadedBatch) -> tuple[Tensor, Tensor]:
        features = describe(loaded.images)
        refuse_non_finite(frozen, source, loaded, features)
        return features, cast(Tensor, loaded.labels)

    features, labels = frozen.compute(frozen.load(source, view, part), described)
    frozen.remark_on_variation(features)
    return features, labels.to(frozen.device)


def described_in_all(frozen: FrozenBackbone, source: ImageSource, loaded: LoadedBatch, describe: Describe) -> list[Tensor]:
    """The results of `describe` for one batch of `source`, of which every process has a share.

    Args:
        frozen: For its device and its count of unreadable images.
        source: Labelled images.
        loaded: The images of this process.
        describe: From uint8 images (b, 3, H, W) to (b, ...).

    Returns:
        (B, ...) of all processes, from which gradients can be computed; the labels (B,) and positions (B,) int64 of the images. B
        is 0 where nothing could be read.

    Raises:
        DataError: More images are unreadable than may be skipped.
        ModelError: Something of it is not finite, in any process.
    """
    frozen.unreadable.record_in_all(loaded.unreadable)
    with errors_in_all():
        described = describe(loaded.images)
        refuse_non_finite(frozen, source, loaded, described)
    frozen.record_keys(source, loaded)
    facts = (cast(Tensor, loaded.labels).to(frozen.device), loaded.indices.to(frozen.device))
    return [gather_rows(each) for each in (as_all_have_it(described).clone(), *facts)]


def last_layer(frozen: FrozenBackbone, pool: str) -> Describe:
    """Describes images by the pooled tokens behind the final norm, (B, 1, F)."""

    def describe(images: Tensor) -> Tensor:
        mean, cls = frozen.features(images)
        return FeatureSet(mean, cls, cls.new_empty(0)).pooled(pool)[:, None]

    return describe


def every_layer(frozen: FrozenBackbone, pool: str) -> Describe:
    """Describes images by the pooled raw outputs of all L blocks, without final norm, (B, L, F).

    Source: BEiT's linear evaluation (mim.md, section 5), which takes class token and mean of the patches side by side ("both").
    """

    @torch.inference_mode()
    def describe(images: Tensor) -> Tensor:
        layers = [
            FeatureSet(patches.mean(dim=1).float(), prefix[:, :has_class].flatten(1).float(), prefix).pooled(pool)
            for patches, prefix in block_outputs(frozen.backbone, _input(frozen, images))
        ]
        return torch.stack(layers, dim=1)

    has_class = int(frozen.backbone.cls_token is not None)
    return describe


def patch_tokens(frozen: FrozenBackbone) -> Describe:
    """Describes images by their patch tokens behind the final norm, (B, N_p, D), rounded to half precision, cached or not.

    Numbers beyond the range of half precision stay as they are; a batch that has any is float32, and all others are float16.
    """

    @torch.inference_mode()
    def describe(images: Tensor) -> Tensor:
        backbone = frozen.backbone
        return rounded_to_half(normed_tokens(backbone, _input(frozen, images))[:, backbone.num_prefix_tokens :])

    return describe


def rounded_to_half(numbers: Tensor) -> Tensor:
    """In float16 where all of them have a place there; else in float32, with the largest as they are and all others rounded."""
    half = numbers.half()
    beyond = half.isinf()
    return torch.where(beyond, numbers, half.to(numbers.dtype)) if beyond.any() else half


def block_outputs(backbone: VisionTransformer, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Patch tokens (B, N_p, D) and prefix tokens (B, P, D) behind every block, first to last, without final norm.

    Args:
        backbone: A timm VisionTransformer or Beit.
        images: (B, 3, H, W), normalised.
    """
    outputs = backbone.forward_intermediates(images, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True)
    return [output if isinstance(output, tuple) else (output, output[:, :0]) for output in outputs]  # type: ignore[misc]


def _input(frozen: FrozenBackbone, images: Tensor) -> Tensor:
    return normalise(images.to(frozen.device, non_blocking=True), frozen.spec.mean, frozen.spec.std)
