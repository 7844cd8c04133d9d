"""What an optimizer step adds up, and an optimizer that takes no step from the first loss on that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mapet.engine.parallel import whole


@dataclass(frozen=True)
class StepSums:
    """Sums over the batch of one step, on the device.

    Args:
        loss: Scalar, summed over targets.
        targets: Scalar, their number.
        metrics: Name to scalar sum over targets.
        gradient_norm: Scalar, before clipping.
    """

    loss: Tensor
    targets: Tensor
    metrics: Mapping[str, Tensor]
    gradient_norm: Tensor


class GuardedStep:
    """Base of everything that applies optimizer steps.

    Once a loss or gradient is not finite, `halted_at` holds that step, and the optimizer takes no further step: the weights stay as
    they were before it. The device decides; there is no host sync.

    Args:
        optimizer: A fused optimizer, which skips its step where `found_inf` is set; a group may have an `lr_scale`.
        device: Where its parameters are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self.halted_at = torch.full((), -1, dtype=torch.int64, device=device)

    def optimizer_step(self, step: int, learning_rate: float, finite: Tensor, targets: Tensor | None = None) -> None:
        """Takes step number `step`; the gradients are gone after it.

        Args:
            step: From 0.
            learning_rate: At scale 1.
            finite: Scalar bool; where it is false, this step and all later ones are skipped.
            targets: Scalar; a step without targets is skipped.
        """
        self.halted_at = torch.where((self.halted_at < 0) & ~finite, step, self.halted_at)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        skipped = self.halted_at >= 0 if targets is None else (self.halted_at >= 0) | (targets == 0)
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def parameters(self) -> list[Tensor]:
        """All parameters of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def clip(self, clip_norm: float | None) -> Tensor:
        """Clips the gradients to `clip_norm`, if it is given; returns their norm before clipping, a scalar."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), clip_norm, norm)
        return norm
