"""MIM: masked prediction of visual tokens.

A random set of patches is replaced by one learned mask vector plus position; the model sees all positions, with full attention, and
predicts the tokens of the hidden patches independently of each other.

    minimise   - sum_{i hidden}  log p( token(i) | visible patches, mask tokens )

Source: the masked baseline of Baraldi et al., section 3.1 and Table 2: uniformly random patches, not blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mapet.compat import checkpoint_seq
from mapet.data.batch import Batch
from mapet.models.backbone import embed_patches, enter_blocks, patch_positions, prefix_tokens
from mapet.objectives.base import ObjectiveOutput, TokenObjective, token_loss
from mapet.objectives.masking import random_mask
from mapet.objectives.permutation import take


@dataclass(frozen=True)
class MaskCorruption:
    """Which patches are hidden.

    Args:
        mask: (B, N_p) bool, True = hidden.
    """

    mask: Tensor
    _equal_count: int | None = field(default=None, init=False, repr=False)

    @classmethod
    def of_equal_counts(cls, mask: Tensor, num_hidden: int) -> MaskCorruption:
        """A mask known to hide `num_hidden` patches in every image, so that nobody has to look."""
        corruption = cls(mask)
        object.__setattr__(corruption, "_equal_count", num_hidden)
        return corruption

    def hidden_patches(self) -> tuple[Tensor, Tensor | None]:
        """Hidden patches in raster order, (B, T) int64, and which of these slots hold one (None = all)."""
        order = self.mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        if self._equal_count is not None:
            return order[:, : self._equal_count], None
        counts = self.mask.sum(dim=1, keepdim=True)
        most = int(counts.max())
        return order[:, :most], torch.arange(most, device=counts.device) < counts


class MIM(TokenObjective[MaskCorruption]):
    """Masked pre-training on uniformly random patches, one stream, full attention."""

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides all but `num_context` patches of every image, uniformly at random."""
        batch_size, device = batch.images.shape[0], batch.images.device
        mask = random_mask(batch_size, self.num_patches, self.num_targets, generator, device)
        return MaskCorruption.of_equal_counts(mask, self.num_targets)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy of the tokens of all hidden patches; logits are in raster order."""
        token_ids = self.check_tokens(batch)
        patches = embed_patches(self.backbone, batch.images)
        patches = torch.where(corruption.mask.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        tokens = torch.cat([prefix_tokens(self.backbone, len(patches)), patches + patch_positions(self.backbone)], dim=1)
        features = self.run_blocks(enter_blocks(self.backbone, tokens))
        hidden, valid = corruption.hidden_patches()
        logits = self.predict(take(features[:, self.backbone.num_prefix_tokens :], hidden))
        return token_loss(logits, token_ids.gather(1, hidden), hidden, valid=valid, return_logits=return_logits)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """The blocks, with timm's activation checkpointing where it is switched on."""
        if self.backbone.grad_checkpointing:
            return checkpoint_seq(self.backbone.blocks, tokens)
        return self.backbone.blocks(tokens)
