"""Classes for whole images of any size, by a window that slides over them.

The image is resized keeping its shape; windows lie a stride apart, the last one moved inward so that it ends with the image; logits
are averaged where windows overlap and brought to the size that the image had. Source: mmsegmentation's slide mode.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from mapet.data.views import normalise
from mapet.evaluation.segmentation.augment import fitting_size
from mapet.evaluation.segmentation.loss import at_size

WINDOWS_AT_ONCE = 16
_CLASSES_AT_ONCE = 16

Logits = Callable[[Tensor], Tensor]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin so that they cover `length` and none ends beyond it; [0] where one is enough."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride, length - window), 0) for number in range(count)]


def sliding_logits(logits: Logits, image: Tensor, window: int, stride: int) -> Tensor:
    """Logits averaged over windows.

    Args:
        logits: From windows (B, 3, window, window), normalised, to (B, C, h, w).
        image: (3, H, W), normalised; padded with the mean colour where it is smaller than a window.
        window: Side in pixels.
        stride: From one window to the next.

    Returns:
        (C, H, W) float32.
    """
    height, width = image.shape[-2:]
    padded = pad(image, (0, max(window - width, 0), 0, max(window - height, 0)))
    rows, columns = (window_starts(length, window, stride) for length in padded.shape[-2:])
    places = [(row, column) for row in rows for column in columns]
    total, seen = torch.zeros(0), torch.zeros(padded.shape[-2:], device=image.device)
    for first in range(0, len(places), WINDOWS_AT_ONCE):
        chunk = places[first : first + WINDOWS_AT_ONCE]
        windows = torch.stack([padded[:, row : row + window, column : column + window] for row, column in chunk])
        window_logits = at_size(logits(windows).float(), (window, window))
        if first == 0:
            total = window_logits.new_zeros(window_logits.shape[1], *padded.shape[-2:])
        for (row, column), values in zip(chunk, window_logits, strict=True):
            total[:, row : row + window, column : column + window] += values
            seen[row : row + window, column : column + window] += 1
    return (total / seen)[:, :height, :width]


def classes_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of the largest logit at every pixel of an image of that size.

    Args:
        logits: (C, h, w).
        size: H and W; logits are brought there (bilinear) a few classes at a time, so that large images need little memory.

    Returns:
        (H, W) int64.
    """
    best = torch.full(size, -torch.inf, device=logits.device)
    classes = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        chunk = logits[None, first : first + _CLASSES_AT_ONCE]
        highest, which = interpolate(chunk, size=size, mode="bilinear", align_corners=False)[0].max(dim=0)
        better = highest > best
        best, classes = torch.where(better, highest, best), torch.where(better, which + first, classes)
    return classes


def segment_image(
    logits: Logits,
    image: Image.Image,
    scale: tuple[int, int],
    window: int,
    stride: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
) -> Tensor:
    """(H, W) int64 classes of a PIL image in mode RGB, resized to fit `scale` (longest, shortest side) meanwhile."""
    resized = image.resize(fitting_size(*image.size, *scale), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).to(device).permute(2, 0, 1)
    values = sliding_logits(logits, normalise(pixels[None], mean, std)[0], window, stride)
    return classes_at(values, (image.height, image.width))
