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

from mapet.data.batch import Batch
from mapet.objectives.base import ObjectiveOutput, TokenObjective, token_loss
from mapet.objectives.encoding import masked_rows, run_blocks
from mapet.objectives.masking import random_mask
from mapet.objectives.permutation import take


@dataclass(frozen=True)
class MaskCorruption:
    """Which patches are hidden.

    Args:
        mask: (B, N_p) bool, True = hidden.
    """

    mask: Tensor
    _most: int | None = field(default=None, init=False, repr=False)
    _equal: bool = field(default=False, init=False, repr=False)

    @classmethod
    def of_known_counts(cls, mask: Tensor, most: int, *, equal: bool) -> MaskCorruption:
        """A mask of which is known how many patches it hides, so that nobody has to wait for the device to look.

        Args:
            mask: (B, N_p) bool, True = hidden.
            most: At most so many are hidden in an image.
            equal: Whether it is exactly so many in every image.
        """
        corruption = cls(mask)
        object.__setattr__(corruption, "_most", most)
        object.__setattr__(corruption, "_equal", equal)
        return corruption

    def hidden_patches(self) -> tuple[Tensor, Tensor | None]:
        """Hidden patches in raster order, (B, T) int64, and which of these slots hold one (None = all)."""
        order = self.mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        counts = self.mask.sum(dim=1, keepdim=True)
        most = int(counts.max()) if self._most is None else self._most
        valid = None if self._equal else torch.arange(most, device=counts.device) < counts
        return order[:, :most], valid


class MIM(TokenObjective[MaskCorruption]):
    """Masked pre-training on uniformly random patches, one stream, full attention."""

    summary = "masked tokens, uniformly random patches hidden"

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides all but `num_context` patches of every image, uniformly at random."""
        batch_size, device = batch.images.shape[0], batch.images.device
        mask = random_mask(batch_size, self.num_patches, self.num_targets, generator, device)
        return MaskCorruption.of_known_counts(mask, self.num_targets, equal=True)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy of the tokens of all hidden patches; logits are in raster order."""
        token_ids = self.check_tokens(batch)
        features = run_blocks(self.backbone, masked_rows(self.backbone, batch.images, corruption.mask, self.mask_token))
        hidden, valid = corruption.hidden_patches()
        logits = self.predict(take(features[:, self.backbone.num_prefix_tokens :], hidden))
        return token_loss(logits, token_ids.gather(1, hidden), hidden, valid=valid, return_logits=return_logits)
