"""Layers that compute or draw over a whole batch: over the images of all processes, whatever their number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mapet.engine.parallel import Place, place_drop_paths
from mapet.runtime.processes import Processes, all_sum_

_OVER_IMAGES = (0, 2, 3)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all processes, gradients included; in evaluation mode as torch's.

    torch's own SyncBatchNorm works on GPUs only.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same; B may be 0 in some processes."""
        if not self.training:
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        normalised, mean, variance, count = _Normalise.apply(values, self.eps)  # type: ignore[misc]
        self._track(mean, variance * count / (count - 1).clamp(min=1))
        scaled = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


class _Normalise(torch.autograd.Function):
    """To mean 0 and variance 1 of every channel; also gives mean, variance and the number of values of a channel."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = all_sum_(torch.cat([values.sum(_OVER_IMAGES), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = values - mean[:, None, None]
        variance = all_sum_(centred.square().sum(_OVER_IMAGES)) / count
        scale = (variance + eps).rsqrt()[:, None, None]
        normalised = centred * scale
        ctx.save_for_backward(normalised, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normalised, scale, count = ctx.saved_tensors
        gradient = gradients[0]
        sums = torch.stack([gradient.sum(_OVER_IMAGES), (gradient * normalised).sum(_OVER_IMAGES)])
        mean, along = (all_sum_(sums) / count)[..., None, None]
        return scale * (gradient - mean - normalised * along), None


class GlobalDropout2d(nn.Dropout2d):
    """torch's dropout of channels, drawn for the images of all processes; each takes its rows."""

    place: Place

    def forward(self, input: Tensor) -> Tensor:
        """Of (B, C, H, W), the images that `place` announces."""
        rows = self.place.rows
        if not self.training or self.p == 0 or rows is None or rows.count == rows.total:
            return super().forward(input)
        mask = input.new_empty(rows.total, input.shape[1], 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)
        return input * mask[rows.slice]


def place_whole_batch(model: nn.Module, processes: Processes) -> Place:
    """Makes drop path, dropout of channels and batch norm of `model` those of the batch of all processes.

    Names and numbers of weights stay as they are.

    Returns:
        What announces to them which images come next.
    """
    place = place_drop_paths(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.__class__ = GlobalDropout2d
            module.place = place  # type: ignore[assignment]
        elif isinstance(module, nn.BatchNorm2d) and processes.world > 1:
            module.__class__ = GlobalBatchNorm2d
    return place
