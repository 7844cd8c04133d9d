"""The feature map of any timm model: its last one, or that of any of its layers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from mapet.errors import TokenizerError


@torch.no_grad()
def feature_map(network: Any, images: Tensor, layer: int | None = None, projection: bool = False) -> Tensor:
    """Features (B, gh, gw, dim), whatever the network's own layout is; class and register tokens are dropped.

    Args:
        network: A timm model.
        images: (B, 3, H, W), normalised as the network expects it.
        layer: As timm's `forward_intermediates` counts: blocks of a ViT (through its final norm, as DINOv2's are used), stages of
            others. None is what the network's head would see, which for a ViT is its last block.
        projection: Whether the head is applied to every token; see `head_of`.
    """
    if layer is not None:
        tokens = {"norm": True} if hasattr(network, "num_prefix_tokens") else {}
        (features,) = network.forward_intermediates(images, indices=[layer], stop_early=True, intermediates_only=True, **tokens)
        return features.permute(0, 2, 3, 1)
    output = network.forward_features(images)
    if output.ndim == 3:
        tokens = output[:, getattr(network, "num_prefix_tokens", 0) :]
        side = round(tokens.shape[1] ** 0.5)
        output = tokens.reshape(len(tokens), side, -1, tokens.shape[2])
    elif getattr(network, "output_fmt", "NCHW") != "NHWC":
        output = output.permute(0, 2, 3, 1)
    return head_of(network)(output) if projection else output


def head_of(network: Any) -> nn.Module:
    """What turns each token of a ViT into an output, such as CLIP's projection into the space shared with text.

    Raises:
        TokenizerError: The network has no head that a single token can pass.
    """
    head, norm = getattr(network, "head", None), getattr(network, "fc_norm", None)
    if not isinstance(head, nn.Linear) or norm is None or not hasattr(network, "num_prefix_tokens"):
        raise TokenizerError(
            f"{type(network).__name__} has no linear head behind its tokens, so that there is no projection. Leave the option out, "
            "or give a ViT with a head, such as vit_base_patch16_clip_quickgelu_224.openai."
        )
    return nn.Sequential(norm, head)


def num_layers(network: Any, images: Tensor) -> int:
    """The number of layers that `feature_map` can return."""
    return len(network.forward_intermediates(images, intermediates_only=True))


def at_size(network: Any, image_size: int) -> Any:
    """The network for square images of `image_size`; position embeddings are resampled where there are any."""
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(image_size, image_size))
    return network.eval().requires_grad_(False)


def without_rest(network: Any, layer: int | None) -> Any:
    """Removes the layers behind the feature map, so that they need not be stored."""
    if layer is not None:
        network.prune_intermediate_layers([layer], prune_norm=not hasattr(network, "num_prefix_tokens"), prune_head=True)
        return network
    with suppress(AssertionError):  # some models cannot do without pooling
        network.reset_classifier(0, "")
    if type(getattr(network, "head", None)).__name__ in ("AttentionPool2d", "RotAttentionPool2d"):
        network.prune_intermediate_layers(1, prune_head=True)  # CLIP's pooling, 51 million parameters in RN50x64
    return network
