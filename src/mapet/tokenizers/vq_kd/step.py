"""One optimizer step of VQ-KD, over all processes: the teacher's features, losses, gradients, weights, codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mapet.engine.optimizer import adamw, decay_groups
from mapet.engine.step import GuardedStep, StepSums
from mapet.runtime.device import autocast
from mapet.runtime.processes import all_sum_, this_process
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.settings import VQKDSettings


def make_optimizer(model: Distillation, settings: VQKDSettings) -> torch.optim.AdamW:
    """Fused AdamW; no weight decay on vectors, biases, positions and class tokens."""
    return adamw(decay_groups(model, settings.weight_decay), settings.betas)


class DistillationStep(GuardedStep):
    """Applies optimizer steps to a model; after each, all processes hold the same weights and codebook.

    Args:
        model: Trained in place.
        optimizer: Of its parameters.
        teacher: From images (B, 3, s, s) in [0, 1] to features (B, gh, gw, dim), frozen.
        precision: Of teacher, encoder and decoder: "fp32" or "bf16".
        device: Where the model is.
    """

    def __init__(
        self, model: Distillation, optimizer: torch.optim.Optimizer, teacher: nn.Module, precision: str, device: torch.device
    ) -> None:
        super().__init__(optimizer, device)
        self.model, self.teacher, self.precision = model, teacher, precision

    def __call__(self, images: Tensor, seen: Tensor, step: int, learning_rate: float) -> StepSums:
        """Takes step number `step`; where loss or gradient is not finite in any process, nothing moves in all of them.

        Args:
            images: The crops of this process as the tokenizer sees them, (B, 3, size, size) in [0, 1].
            seen: The same crops as the teacher sees them.
            step: Steps taken before.
            learning_rate: Of all parameters.

        Returns:
            Sums over the patches of all processes; "commitment" and "reconstruction" add up to the loss.
        """
        with torch.no_grad(), autocast(seen.device, self.precision):
            targets = self.teacher(seen)
        output = self.model(images, targets, self.precision)
        (output.commitment + output.reconstruction).backward()
        parts = [output.commitment.detach(), output.reconstruction.detach(), len(output.ids)]
        commitment, reconstruction, patches = all_sum_(
            torch.stack([torch.as_tensor(part, dtype=torch.float32, device=images.device) for part in parts])
        )
        norm = self._average_gradients(patches)
        loss = commitment + reconstruction
        self.optimizer_step(step, learning_rate, finite=torch.isfinite(loss) & torch.isfinite(norm))
        if self.halted_at < 0:
            self.model.update_codebook(output, step)
        return StepSums(loss, patches, {"reconstruction": reconstruction, "commitment": commitment}, norm)

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
