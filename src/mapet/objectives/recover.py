"""What the tasks of "Beyond Masking" share: degrade an image, encode what is left, predict the pixels that it had.

A task names its degradation and, where input and prediction do not lie on each other, its loss. Without masking all patches are
encoded; with `mask_ratio` only the rest is, and the loss is about the masked ones.

    minimise   mean over patches of  | decoder(encoder(degraded image)) - normalised pixels |^2

Source: Tian et al., "Beyond Masking: Demystifying Token-Based Pre-Training for Vision Transformers".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mapet.checkpoints.projections import join_biases
from mapet.compat import VisionTransformer
from mapet.config.architecture import Depth, Heads, Width
from mapet.data.batch import Batch
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.errors import ModelError
from mapet.models.backbone import grid_size, patch_positions, patch_size
from mapet.models.pixel_decoder import PixelDecoder, sinusoid_table
from mapet.models.weights import load_strictly
from mapet.objectives.base import ObjectiveOutput
from mapet.objectives.encoding import encode_patches
from mapet.objectives.masking import count_of, random_mask
from mapet.objectives.patch_pixels import normalised_patches
from mapet.objectives.pixels import PixelObjective


@dataclass(frozen=True)
class Degradation:
    """What was done to every image.

    Args:
        mask: (B, N_p) bool, True = hidden; None where nothing is masked.
    """

    mask: Tensor | None


Drawn = TypeVar("Drawn", bound=Degradation)


class Recover(PixelObjective[Drawn]):
    """Recovers the pixels of degraded images.

    Args:
        backbone: A plain timm ViT, trained in place.
        mean: Per channel, what the images of a batch were normalised with.
        std: Per channel.
        mask_ratio: Share of the patches that are hidden as well, or their number; 0 for none.
        width: Of the decoder.
        depth: Of the decoder.
        num_heads: Of the decoder.
        fixed_positions: Gives the backbone the paper's fixed sinusoids for positions, instead of learning them.
    """

    default_mask_ratio = 0.0

    def __init__(
        self,
        backbone: VisionTransformer,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        mask_ratio: float | None = None,
        width: Width = 384,
        depth: Depth = 4,
        num_heads: Heads = 6,
        fixed_positions: bool = False,
    ) -> None:
        super().__init__(backbone, mean, std)
        ratio = self.default_mask_ratio if mask_ratio is None else mask_ratio
        self.num_masked = 0 if ratio == 0 else count_of("mask_ratio", ratio, self.num_patches, 1, self.num_patches - 1)
        self.patch_size = patch_size(backbone)
        self.image_size = grid_size(backbone)[0] * self.patch_size
        if grid_size(backbone)[0] != grid_size(backbone)[1]:
            raise ModelError(f"The images must be square; this backbone makes {grid_size(backbone)} patches.")
        self.decoder = PixelDecoder(backbone.embed_dim, self.num_patches, 3 * self.patch_size**2, width, depth, num_heads)
        self.decoder.mask_token.requires_grad_(self.num_masked > 0)
        if fixed_positions:
            self._fix_positions()

    @property
    def sequence_length(self) -> float:
        """Prefix tokens and the patches that are not masked."""
        return self.backbone.num_prefix_tokens + self.num_patches - self.num_masked

    def corrupt(self, batch: Batch, generator: torch.Generator) -> Drawn:
        """Draws the degradation of every image, and which patches are masked."""
        size, device, mask = len(batch.images), batch.images.device, None
        if self.num_masked:
            mask = random_mask(size, self.num_patches, self.num_masked, generator, device)
        return self.draw(size, mask, generator, device)

    @abstractmethod
    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Drawn:
        """The task's own draws, beside the mask."""

    @abstractmethod
    def degrade(self, images: Tensor, drawn: Drawn) -> Tensor:
        """What the backbone sees, (B, C, image_size, image_size), of images (B, 3, view_size, view_size); both normalised."""

    def losses(self, predicted: Tensor, images: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor | None]:
        """Mean squared error of every patch (B, N_p), and anything else to be minimised for every image (B,)."""
        return (predicted - normalised_patches(self.pixels(images), self.patch_size)).square().mean(dim=2), None

    def forward(self, batch: Batch, corruption: Drawn, return_logits: bool = False) -> ObjectiveOutput:
        """Mean squared error of normalised pixels, summed over the masked patches or, without a mask, over all."""
        patches = self._visible(corruption.mask)
        encoded = encode_patches(self.backbone, self.degrade(batch.images, corruption), patches)
        of_patches, of_images = self.losses(self.decoder(encoded, patches), batch.images, corruption)
        targets = self.num_masked or self.num_patches
        loss_sum = (of_patches if corruption.mask is None else of_patches.where(corruption.mask, 0)).sum()
        if of_images is not None:
            loss_sum = loss_sum + targets * of_images.sum()
        return ObjectiveOutput(loss_sum, torch.full((), targets * len(batch.images), device=loss_sum.device))

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a released pre-training checkpoint, under its published key names, with the paper's fixed positions.

        Raises:
            ModelError: Lists the keys that are missing, left over or of another shape.
        """
        joined = join_biases({key: value for key, value in state_dict.items() if key != "encoder.cls_token"})
        optional = ("backbone.head.", "backbone.pos_embed", "backbone.cls_token")
        load_strictly(self, {_our_name(key): value for key, value in joined.items()}, optional=optional)
        self._fix_positions()

    @torch.no_grad()
    def _fix_positions(self) -> None:
        table = self.backbone.pos_embed
        assert table is not None
        table.requires_grad_(False).zero_()
        patch_positions(self.backbone).copy_(sinusoid_table(self.num_patches, self.backbone.embed_dim))

    def _visible(self, mask: Tensor | None) -> Tensor | None:
        """The patches (B, K) that are not hidden, in raster order; None for all."""
        if mask is None:
            return None
        return mask.to(torch.int8).argsort(dim=1, stable=True)[:, : self.num_patches - self.num_masked]


def _our_name(key: str) -> str:
    """Our name of a parameter of the release."""
    for theirs, ours in (
        ("encoder_to_decoder.", "decoder.bridge."),
        ("mask_token", "decoder.mask_token"),
        ("encoder.", "backbone."),
    ):
        if key.startswith(theirs):
            return key.replace(theirs, ours, 1)
    return key
