"""UperNet on a plain ViT: four blocks of the backbone, brought to four scales, and transformers' heads on top.

    blocks 3, 5, 7, 11 (of 12; patches only, no norm)  ->  x 4, x 2, x 1, / 2  ->  UperNet head            -> classes at x 4
                                                                              third ->  one convolution   -> classes at x 1

Source: BEiT's ADE20K configuration (arXiv 2106.08254, section 3.2), which MaPeT and BEiT v2 follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mapet.compat import VisionTransformer, timm
from mapet.errors import SettingsError
from mapet.models.backbone import blocks_of
from mapet.models.positions import at_image_size

_PUBLISHED_BLOCKS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
LEVELS = 4


class Rescaling(nn.Module):
    """One grid of features at four resolutions: 4 times as fine, 2 times, as it is, and half.

    Args:
        dim: Width of the features, D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        up, up_again = (nn.ConvTranspose2d(dim, dim, 2, 2) for _ in range(2))
        self.fpn1 = nn.Sequential(up, nn.BatchNorm2d(dim), nn.GELU(), up_again)
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(dim, dim, 2, 2))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(2)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four times (B, D, h, w) to (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w), (B, D, h/2, w/2)."""
        scales = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [scale(feature) for scale, feature in zip(scales, features, strict=True)]


class UperNet(nn.Module):
    """A backbone with heads that give a class to every pixel.

    Args:
        backbone: At the size of its crops; trained along.
        num_classes: C.
        blocks: Four of its blocks, from 0.
        channels: Width of the head.
        aux_channels: Width of the auxiliary head.
        dropout: Share of channels dropped before the last layer of both heads.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        blocks: Sequence[int],
        channels: int,
        aux_channels: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, list(blocks)
        width = backbone.embed_dim
        self.rescaling = Rescaling(width)
        self.decode_head, self.auxiliary_head = _heads(width, num_classes, channels, aux_channels, dropout)

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), normalised, to four maps (B, D, rows, columns), finest first."""
        maps = self.backbone.forward_intermediates(images, indices=self.blocks, norm=False, intermediates_only=True)
        return self.rescaling(maps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the head (B, C, 4h, 4w) and of the auxiliary head (B, C, h, w) over h x w patches."""
        features = self.features(images)
        return self.decode_head(features), self.auxiliary_head(features)

    def logits(self, images: Tensor) -> Tensor:
        """Logits of the head, (B, C, 4h, 4w)."""
        return self.decode_head(self.features(images))


def blocks_of_depth(depth: int) -> tuple[int, ...]:
    """The published blocks for 12 and 24; else the last of four equal parts: 0, 1, 2, 3 of 4.

    Raises:
        SettingsError: There are fewer than four blocks.
    """
    if depth < LEVELS:
        raise SettingsError(f"The backbone has {depth} blocks, and UperNet takes the features of four. Give a deeper one.")
    return _PUBLISHED_BLOCKS.get(depth) or tuple(depth * part // LEVELS - 1 for part in range(1, LEVELS + 1))


def check_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Four ascending blocks of a backbone.

    Raises:
        SettingsError: They are others.
    """
    if len(blocks) != LEVELS or sorted({*blocks}) != [*blocks] or blocks[0] < 0 or blocks[-1] >= depth:
        raise SettingsError(f"blocks is {list(blocks)}; allowed: four ascending numbers from 0 to {depth - 1}.")
    return tuple(blocks)


def at_crop_size(backbone: VisionTransformer, crop: int, drop_path: float) -> VisionTransformer:
    """A trainable copy whose position embeddings, absolute or relative, are resized to crops of that side.

    Args:
        backbone: A ViT or a Beit of timm; left as it is.
        crop: Side in pixels.
        drop_path: Rate of the last block; grows linearly from 0 at the first.

    Raises:
        SettingsError: The crop is not made of whole patches, an even number in each direction.
    """
    rows, columns = backbone.patch_embed.patch_size
    if crop < 1 or crop % (2 * rows) or crop % (2 * columns):
        raise SettingsError(
            f"crop is {crop}; the patches are {rows} x {columns} pixels, so that it must be a multiple of {2 * rows}."
        )
    trained = at_image_size(backbone, crop).train().requires_grad_(True)
    blocks = [*blocks_of(trained)]
    for block, rate in zip(blocks, torch.linspace(0, drop_path, len(blocks)).tolist(), strict=True):
        for name in ("drop_path", "drop_path1", "drop_path2"):
            if hasattr(block, name):
                setattr(block, name, timm.layers.drop.DropPath(rate) if rate else nn.Identity())
    return trained


def _heads(width: int, num_classes: int, channels: int, aux_channels: int, dropout: float) -> list[nn.Module]:
    """UperNet's head and a convolution on its third input, with dropout, and mmsegmentation's initial weights."""
    from transformers import UperNetConfig  # behind mapet.compat, which repairs torchvision first
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    settings: dict[str, Any] = {"hidden_size": channels, "auxiliary_channels": aux_channels, "num_labels": num_classes}
    config = UperNetConfig(**settings)
    heads: list[nn.Module] = [UperNetHead(config, [width] * LEVELS), UperNetFCNHead(config, [width] * LEVELS)]
    for head in heads:
        for part in head.modules():
            if isinstance(part, nn.Conv2d) and part.bias is None:
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        classifier = cast(nn.Conv2d, head.classifier)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(cast(nn.Parameter, classifier.bias))
        head.classifier = nn.Sequential(nn.Dropout2d(dropout), classifier)
    return heads
