"""Zoomed-in: see the centre, predict the whole.

The input is the central part of a larger view, pixel for pixel. The decoder's patches stand for the whole view, squeezed to the
size of the input; so tokens with the same index and position mean one place in the input and another one in the prediction.

    minimise   0.8  centre  +  0.2  edge

Centre: the prediction, enlarged to the view and cut to the input, against the normalised patches of the input. Edge: the four
strips around the input, the prediction against the normalised patches of the squeezed view, both enlarged; each strip counts
alike. With `mask_ratio` three quarters of the input's patches are hidden too, and the centre counts those only: the paper's best
practice.

Source: task (a), and (a)+(m), of Tian et al., "Beyond Masking". There 224 of 288 pixels are seen; other sizes keep that
proportion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mapet.models.backbone import grid_size
from mapet.objectives.patch_pixels import area_resize, normalised_patches, patchify, unpatchify
from mapet.objectives.recover import Degradation, Recover

# Width of the strip on every side that is not seen, as a share of the input's side: 32 of 224 pixels.
EDGE = 1 / 7
WEIGHTS = (0.8, 0.2)


class ZoomedIn(Recover[Degradation]):
    """Recovers the whole of an image from its centre."""

    summary = "see the centre of an image, predict the whole"

    @property
    def edge(self) -> int:
        """Pixels on every side of the view that are not seen."""
        return max(1, round(self.image_size * EDGE))

    @property
    def view_size(self) -> int:
        """Side of the whole view."""
        return self.image_size + 2 * self.edge

    def draw(self, batch_size: int, mask: Tensor | None, generator: torch.Generator, device: torch.device) -> Degradation:
        """Nothing beside the mask: the centre is always the same."""
        return Degradation(mask)

    def degrade(self, images: Tensor, drawn: Degradation) -> Tensor:
        """The centre, without resampling."""
        return self._centre(images)

    def losses(self, predicted: Tensor, images: Tensor, drawn: Degradation) -> tuple[Tensor, Tensor | None]:
        """The centre's error of every patch and the edge's of every image, weighted."""
        view = self.pixels(images)
        enlarged = self._enlarged(predicted)
        seen = normalised_patches(self._centre(view), self.patch_size)
        centre = (patchify(self._centre(enlarged), self.patch_size) - seen).square().mean(dim=2)
        whole = self._enlarged(normalised_patches(area_resize(view, self.image_size), self.patch_size))
        error = (enlarged - whole).square()
        edge = torch.stack([strip.mean(dim=(1, 2, 3)) for strip in self._strips(error)]).sum(dim=0)
        return WEIGHTS[0] * centre, WEIGHTS[1] * edge

    def _centre(self, images: Tensor) -> Tensor:
        inside = slice(self.edge, -self.edge)
        return images[:, :, inside, inside]

    def _enlarged(self, patches: Tensor) -> Tensor:
        """Patches as an image of the size of the view."""
        return area_resize(unpatchify(patches, grid_size(self.backbone), self.patch_size), self.view_size)

    def _strips(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Above and below over the whole width, left and right between them."""
        edge = self.edge
        between = images[:, :, edge:-edge]
        return images[:, :, :edge], images[:, :, -edge:], between[:, :, :, :edge], between[:, :, :, -edge:]
