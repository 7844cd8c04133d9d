"""One optimizer step of VQ-KD, over all processes: the teacher's features, losses, gradients, weights, codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mapet.errors import NonFiniteLossError
from mapet.models.weights import decay_groups
from mapet.runtime.device import autocast
from mapet.runtime.processes import all_sum_, this_process
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.settings import VQKDSettings


def make_optimizer(model: Distillation, settings: VQKDSettings) -> torch.optim.AdamW:
    """Fused AdamW; no weight decay on vectors, biases, positions and class tokens."""
    groups = decay_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, betas=settings.betas, fused=True)


class DistillationStep:
    """Applies optimizer steps to a model; after each, all processes hold the same weights and codebook.

    Args:
        model: Trained in place.
        optimizer: Of its parameters.
        teacher: From images (B, 3, s, s) in [0, 1] to features (B, gh, gw, dim), frozen.
        precision: Of teacher, encoder and decoder: "fp32" or "bf16".
    """

    def __init__(self, model: Distillation, optimizer: torch.optim.Optimizer, teacher: nn.Module, precision: str) -> None:
        self.model, self.optimizer, self.teacher, self.precision = model, optimizer, teacher, precision

    def __call__(
        self, images: Tensor, seen: Tensor, keys: list[str], step: int, rate: float, stop: bool = False
    ) -> tuple[Tensor, bool]:
        """Takes step number `step`.

        Args:
            images: The crops of this process as the tokenizer sees them, (B, 3, size, size) in [0, 1].
            seen: The same crops as the teacher sees them.
            keys: Their sample keys, for messages.
            step: Steps taken before.
            rate: Learning rate.
            stop: Whether this process was asked to stop.

        Returns:
            Sums over the patches of all processes, (3,): commitment, reconstruction, 1; and whether any process was asked to stop.

        Raises:
            NonFiniteLossError: Loss or gradient is not finite, in all processes at once; nothing has moved.
        """
        with torch.no_grad(), autocast(seen.device, self.precision):
            targets = self.teacher(seen)
        output = self.model(images, targets, self.precision)
        (output.commitment + output.reconstruction).backward()
        facts = [output.commitment.detach(), output.reconstruction.detach(), len(output.ids), stop]
        sums = all_sum_(torch.stack([torch.as_tensor(fact, dtype=torch.float32, device=images.device) for fact in facts]))
        norm = self._average_gradients(sums[2])
        if not torch.isfinite(sums.sum() + norm):
            raise NonFiniteLossError(
                f"The loss or its gradient is not finite at step {step}. The optimizer did not move; the last state is intact. "
                f"Sample keys of that batch: {', '.join(keys[:4])} ... "
                "In a new --out, a lower --lr or --precision fp32 usually helps."
            )
        self._move(rate)
        self.model.move(output, step)
        return sums[:3], bool(sums[3] > 0)

    def _average_gradients(self, patches: Tensor) -> Tensor:
        """Turns gradients of this process's summed loss into those of the mean over all patches; returns their norm."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if this_process().world > 1:
            together = all_sum_(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = together.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        count = patches.clamp(min=1)
        for gradient in gradients:
            gradient.div_(count)
        return torch.nn.utils.get_total_norm(gradients)

    def _move(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
