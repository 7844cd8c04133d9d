"""Zoomed-out: see an image small and off the centre, predict it in full size.

The image is laid on a larger canvas at a random place; around it the canvas is filled with its mirror image. The decoder's patches
stand for the image alone, enlarged to the size of the canvas. For the loss both, prediction and normalised patches of the enlarged
image, are shrunk and laid on the canvas in the same way.

    minimise   mean over patches of  | canvas(prediction) - canvas(normalised patches) |^2

Source: task (b) of Tian et al., "Beyond Masking": 160 pixels on a canvas of 224; other sizes keep that proportion. The release
draws one place for a whole batch (`one_place=True`), ours one for every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.models.backbone import grid_size
from mapet.objectives.patch_pixels import area_resize, normalised_patches, patchify, unpatchify
from mapet.objectives.recover import Degradation, Recover

# Side of the image as a share of the canvas: 160 of 224 pixels.
SHARE = 5 / 7


@dataclass(frozen=True)
class Placement(Degradation):
    """Where every image lies on its canvas.

    Args:
        place: (B, 2) int64, pixels to the left of and above the image.
    """

    place: Tensor


class ZoomedOut(Recover[Placement]):
    """Recovers an image in full size from a small copy.

    Args:
        backbone: A plain timm ViT, trained in place.
        one_place: Draw one place for all images of a batch, as released.
        **options: Those of `Recover`.
    """

    summary = "see an image small and off the centre, predict it in full size"

    def __init__(self, backbone: VisionTransformer, one_place: bool = False, **options: Any) -> None:
        super().__init__(backbone, **options)
        self.one_place = one_place

    @property
    def view_size(self) -> int:
        """Side of the image on the canvas."""
        return round(self.image_size * SHARE)

    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Placement:
        """A place, uniform over all but the last pixel."""
        draws = torch.rand(1 if self.one_place else batch_size, 2, generator=generator, device=generator.device)
        room = max(1, self.image_size - self.view_size)
        return Placement(mask, (draws * room).long().expand(batch_size, 2).to(device))

    def degrade(self, images: Tensor, drawn: Placement) -> Tensor:
        """The images on their canvases."""
        return on_canvas(images, drawn.place, self.image_size)

    def losses(self, predicted: Tensor, images: Tensor, drawn: Placement) -> tuple[Tensor, Tensor | None]:
        """The error of every patch of the canvas."""
        targets = normalised_patches(area_resize(self.pixels(images), self.image_size), self.patch_size)
        difference = self._as_seen(predicted, drawn) - self._as_seen(targets, drawn)
        return difference.square().mean(dim=2), None

    def _as_seen(self, patches: Tensor, drawn: Placement) -> Tensor:
        """Patches of the full-sized image as patches of the canvas."""
        image = unpatchify(patches, grid_size(self.backbone), self.patch_size)
        return patchify(self.degrade(area_resize(image, self.view_size), drawn), self.patch_size)


def on_canvas(images: Tensor, place: Tensor, size: int) -> Tensor:
    """Images (B, C, s, s) on canvases (B, C, size, size), mirrored around themselves with the edge repeated.

    Args:
        images: Any channels.
        place: (B, 2) int64, pixels to the left of and above each image.
        size: Side of the canvas.
    """
    side = images.shape[-1]
    distance = (torch.arange(size, device=images.device) - place.unsqueeze(-1)) % (2 * side)
    columns, rows = torch.minimum(distance, 2 * side - 1 - distance).unbind(1)
    channels = images.shape[1]
    stretched = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, side))
    return stretched.gather(3, columns[:, None, None, :].expand(-1, channels, size, -1))
