"""Images as patches of pixels and back, and the pixels of a patch normalised by themselves."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# Added to the standard deviation of a patch, so that flat ones stay finite.
FLAT = 1e-6


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, H, W) to (B, N_p, p * p * C), pixel after pixel, channels last."""
    tiles = images.unflatten(2, (-1, patch_size)).unflatten(4, (-1, patch_size))
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """(B, N_p, p * p * C) to (B, C, H, W)."""
    tiles = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, grid_size)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def normalised_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Patches (B, N_p, p * p * C) of images in [0, 1], each channel of each with mean 0 and deviation 1."""
    values = patchify(pixels, patch_size).unflatten(2, (patch_size * patch_size, -1))
    centred = values - values.mean(dim=2, keepdim=True)
    variance = centred.square().sum(dim=2, keepdim=True) / (values.shape[2] - 1)
    return (centred / (variance.sqrt() + FLAT)).flatten(2)


def area_resize(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, C, size, size): every pixel is the mean of those that it touches, also when enlarging."""
    return adaptive_avg_pool2d(images, (size, size))
