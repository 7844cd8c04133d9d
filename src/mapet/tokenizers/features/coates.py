"""Single-layer k-means features (Coates, Lee & Ng 2011): shapes rather than pixels, and no weights from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.errors import TokenizerError
from mapet.tokenizers.clustering.kmeans import kmeans
from mapet.tokenizers.features.base import CONTRAST_FLOOR, FeatureExtractor, Whitening, normalise_contrast

# Samples that the filters and the final whitening are estimated from.
FIT_WINDOWS = 100_000
# Codes (values) that are held at once: more images together only leave the CPU's cache.
CHUNK_VALUES = {"cpu": 2**21, "cuda": 2**28}


class CoatesFeatures(FeatureExtractor):
    """Small whitened windows at every position, coded by k-means filters, averaged around every patch, whitened again.

    The code of a window z for filter c is max(0, m - |z - c|), where m is the mean of |z - c| over all filters.

    Args:
        image_size: Height and width of its images in pixels.
        patch_size: Height and width of a patch.
        num_filters: k-means centroids that code the windows.
        window: Height and width of the small windows in pixels.
        stride: Pixels between windows.
        neighbourhood: Width of the square around a patch over which codes are averaged, in patches.
        dim: Principal components kept at the end; at most `num_filters`.
        epsilon: Damping of weak components in both whitenings, relative to the mean variance.
    """

    images_to_fit = 2000

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_filters: int = 256,
        window: int = 6,
        stride: int = 1,
        neighbourhood: float = 3.0,
        dim: int = 64,
        epsilon: float = 0.1,
    ) -> None:
        if not 1 <= window <= image_size:
            raise TokenizerError(f"Windows of {window} pixels do not fit into images of {image_size}. Allowed: 1 to {image_size}.")
        if num_filters < 2 or stride < 1 or not neighbourhood > 0:
            raise TokenizerError(
                f"num_filters ({num_filters}) must be at least 2, stride ({stride}) at least 1 and neighbourhood ({neighbourhood}) "
                "positive."
            )
        grid = image_size // patch_size
        super().__init__(image_size, (grid, grid), min(dim, num_filters))
        self.patch_size, self.num_filters, self.window, self.stride = patch_size, num_filters, window, stride
        self.neighbourhood, self.epsilon = float(neighbourhood), epsilon
        values = 3 * window * window
        self.window_whitening = Whitening(values, min(values, 64), epsilon)
        self.register_buffer("filters", torch.full((num_filters, min(values, 64)), float("nan")))
        self.code_whitening = Whitening(num_filters, self.dim, epsilon)
        self.register_buffer("pooling", self._pooling(), persistent=False)

    filters: Tensor
    pooling: Tensor

    def settings(self) -> dict[str, Any]:
        """What `create_features` needs to build it again."""
        names = ("image_size", "patch_size", "num_filters", "window", "stride", "neighbourhood", "dim", "epsilon")
        return {"name": "coates", **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Whitens random windows of `images`, clusters them to filters, and whitens the pooled codes."""
        windows = normalise_contrast(self._random_windows(images, generator))
        self.window_whitening.fit(windows.split(8192))
        whitened = self.window_whitening(windows)
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self.filters.copy_(kmeans(whitened, self.num_filters, iterations=20, seed=seed).centroids)
        per_image = -(-FIT_WINDOWS // len(images))
        self.code_whitening.fit(_random_patches(codes, per_image, generator) for codes in self._pooled_chunks(images))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, gh, gw, dim) of images (B, 3, image_size, image_size) in [0, 1]."""
        return torch.cat([self.code_whitening(codes) for codes in self._pooled_chunks(images)])

    def _pooled_chunks(self, images: Tensor) -> Iterator[Tensor]:
        """Pooled codes (b, gh, gw, num_filters) of a few images at a time."""
        per_image = self.num_filters * self.pooling.shape[1] ** 2
        size = max(1, CHUNK_VALUES.get(images.device.type, CHUNK_VALUES["cuda"]) // per_image)
        return (self._pool(self._codes(chunk)) for chunk in images.split(size))

    def _codes(self, images: Tensor) -> Tensor:
        """Triangle codes (B, rows, columns, num_filters) of all windows."""
        whitened = self._whitened_windows(images)
        squared = torch.addmm(self.filters.square().sum(1), whitened.flatten(0, 2), self.filters.T, alpha=-2)
        distance = squared.add_(whitened.flatten(0, 2).square().sum(1, keepdim=True)).clamp_min_(0).sqrt_()
        codes = distance.neg_().sub_(distance.mean(1, keepdim=True)).relu_()
        return codes.view(*whitened.shape[:3], self.num_filters)

    def _whitened_windows(self, images: Tensor) -> Tensor:
        """(B, rows, columns, components): contrast normalisation and whitening of every window, as two convolutions.

        With u = (x - mean(x)) / deviation(x), the whitened window W (u - a) is (W' x) / deviation(x) - W a, where W' is W with the
        mean of every row taken out.
        """
        rows = self.window_whitening.components
        kernel = (rows - rows.mean(1, keepdim=True)).view(-1, 3, self.window, self.window)
        projected = F.conv2d(images, kernel, stride=self.stride).permute(0, 2, 3, 1)
        deviation = self._variance(images).add_(CONTRAST_FLOOR).sqrt_()
        return projected / deviation[..., None] - rows @ self.window_whitening.mean

    def _variance(self, images: Tensor) -> Tensor:
        """(B, rows, columns): variance over the values of every window."""
        centred = images - images.mean((1, 2, 3), keepdim=True)
        channel = torch.stack([centred.mean(1), centred.square().mean(1)], 1)
        mean, square = F.avg_pool2d(channel, self.window, self.stride).unbind(1)
        return (square - mean.square()).clamp_min_(0)

    def _pool(self, codes: Tensor) -> Tensor:
        """Averages codes (B, rows, columns, f) around every patch: (B, gh, gw, f)."""
        batch, rows, columns, filters = codes.shape
        pooled = (self.pooling @ codes.view(batch, rows, columns * filters)).view(-1, columns, filters)
        return (self.pooling @ pooled).view(batch, *self.grid_size, filters)

    def _pooling(self) -> Tensor:
        """(patches, windows) along one side: equal weights on the windows whose centre lies in the patch's neighbourhood."""
        centres = torch.arange(0, self.image_size - self.window + 1, self.stride) + self.window / 2
        patches = (torch.arange(self.grid_size[0]) + 0.5) * self.patch_size
        distance = (centres - patches[:, None]).abs()
        # A neighbourhood narrower than the stride, or at a border, may hold no centre: the nearest window stands in.
        reach = torch.maximum(torch.tensor(self.neighbourhood * self.patch_size / 2), distance.amin(1, keepdim=True))
        inside = (distance <= reach).float()
        return inside / inside.sum(1, keepdim=True)

    def _random_windows(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(FIT_WINDOWS, 3 x window x window) pixels at random places."""
        side = self.image_size - self.window + 1
        draws = torch.rand(3, FIT_WINDOWS, generator=generator, device=generator.device).to(images.device)
        index, top, left = (draws * torch.tensor([[len(images)], [side], [side]], device=images.device)).long()
        windows = images.unfold(2, self.window, 1).unfold(3, self.window, 1)
        return windows[index, :, top, left].flatten(1)


def _random_patches(codes: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """At most `per_image` random patches of every image, (n, f)."""
    batch, _, _, filters = codes.shape
    flat = codes.view(batch, -1, filters)
    order = torch.rand(flat.shape[:2], generator=generator, device=generator.device).argsort(1)[:, :per_image].to(codes.device)
    return flat.gather(1, order[..., None].expand(-1, -1, filters)).flatten(0, 1)
