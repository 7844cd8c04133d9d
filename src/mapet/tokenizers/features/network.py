"""Features of a trained network: what those of timm's models and those of runs of our own have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mapet.errors import TokenizerError, in_one_line
from mapet.runtime.device import without_memory
from mapet.tokenizers.features.base import FeatureExtractor
from mapet.tokenizers.features.feature_map import at_size, feature_map, num_layers, without_rest


class NetworkFeatures(FeatureExtractor):
    """A timm model up to one of its feature maps; class and register tokens are dropped, patch tokens laid out as the grid.

    Args:
        image_size: Height and width of its images in pixels.
        patch_size: How many pixels one cell of the feature map covers.
        title: What messages call the network.
        build: Makes the network, its weights random.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        layer: Whose map is taken, negative ones counted from the end; None is the last, as the network's head would see it.
        projection: Whether each token passes the network's head.

    Raises:
        TokenizerError: There is no such layer, or its map has another grid than image_size / patch_size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        title: str,
        build: Callable[[], nn.Module],
        mean: Sequence[float],
        std: Sequence[float],
        layer: int | None = None,
        projection: bool = False,
    ) -> None:
        grid = image_size // patch_size
        layer, (rows, columns, dim) = _layer_and_shape(title, build, image_size, layer, projection)
        if (rows, columns) != (grid, grid):
            raise TokenizerError(
                f"'{title}' at {image_size} px has a feature map of {rows} x {columns}, not the {grid} x {grid} of patch size "
                f"{patch_size}. Give patch size {image_size // rows}, or image size {image_size * grid // rows}."
            )
        super().__init__(image_size, (grid, grid), dim)
        self.patch_size, self.layer, self.projection = patch_size, layer, projection
        self.backbone = self.prepared(build())
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def prepared(self, network: nn.Module) -> nn.Module:
        """The network as it is used and stored: at the image size, frozen, without what lies behind the map."""
        network = at_size(network, self.image_size)
        return network if self.projection else without_rest(network, self.layer)

    def layer_settings(self) -> dict[str, Any]:
        """Those of sizes, layer and projection, as far as they differ from the defaults."""
        options = {"layer": self.layer, "projection": self.projection or None}
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        return sizes | {name: value for name, value in options.items() if value is not None}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, gh, gw, dim) of images (B, 3, image_size, image_size) in [0, 1]."""
        return feature_map(self.backbone, (images - self.mean) / self.std, self.layer, self.projection)


def _layer_and_shape(
    title: str, build: Callable[[], nn.Module], image_size: int, layer: int | None, projection: bool
) -> tuple[int | None, tuple[int, int, int]]:
    """The layer counted from the start, and (rows, columns, dim) of its map; found without computing anything."""
    if layer is not None and projection:
        raise TokenizerError("The projection belongs to the last layer. Give either a layer or the projection.")
    try:
        with without_memory():
            network, images = at_size(build(), image_size), torch.zeros(1, 3, image_size, image_size)
            layers = 0 if layer is None else num_layers(network, images)
            if layer is not None and not -layers <= layer < layers:
                raise TokenizerError(
                    f"'{title}' has no layer {layer}. Allowed: 0 to {layers - 1}, or -1 to -{layers} from the end."
                )
            layer = None if layer is None else layer % layers
            rows, columns, dim = feature_map(network, images, layer, projection).shape[1:]
    except (AssertionError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        raise TokenizerError(
            f"'{title}' gives no feature map of images of {image_size} px: {in_one_line(error)}. Give another image size, a layer, "
            "or another model."
        ) from error
    return layer, (rows, columns, dim)
