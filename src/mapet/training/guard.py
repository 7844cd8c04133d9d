"""An optimizer that stands still from the first loss on that is not finite, decided where the loss is: without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


class GuardedStep:
    """Base of everything that applies optimizer steps.

    Once a loss or gradient is not finite, `halted_at` holds that step and the optimizer no longer moves: whoever reads `halted_at`
    later finds the weights as they were before that step.

    Args:
        optimizer: A fused optimizer, which skips its step where `found_inf` is set; a group may have an `lr_scale`.
        device: Where its parameters are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device
        self.halted_at = torch.full((), -1, dtype=torch.int64, device=device)

    def move(self, step: int, learning_rate: float, finite: Tensor, targets: Tensor | None = None) -> None:
        """Takes step number `step`; the gradients are gone after it.

        Args:
            step: From 0.
            learning_rate: At scale 1.
            finite: Scalar bool; where it is false, nothing moves any more.
            targets: Scalar; where there are none, this step moves nothing.
        """
        self.halted_at = torch.where((self.halted_at < 0) & ~finite, step, self.halted_at)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        still = self.halted_at >= 0 if targets is None else (self.halted_at >= 0) | (targets == 0)
        self.optimizer.found_inf = still.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
