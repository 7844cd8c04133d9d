"""MIM: masked prediction of visual tokens.

A random set of patches is replaced by one learned mask vector plus position; the model sees all positions, with full attention, and
predicts the tokens of the hidden patches independently of each other.

    minimise   - sum_{i hidden}  log p( token(i) | visible patches, mask tokens )

Source: the masked baseline of Baraldi et al., section 3.1 and Table 2: uniformly random patches, not blocks.
"""

from __future__ import annotations

import torch

from mapet.data.batch import Batch
from mapet.objectives.base import MaskedTokenObjective, ObjectiveOutput, token_loss
from mapet.objectives.encoding import gather_rows, masked_sequence, run_blocks
from mapet.objectives.masking import MaskCorruption, random_mask


class MIM(MaskedTokenObjective[MaskCorruption]):
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
        features = run_blocks(self.backbone, masked_sequence(self.backbone, batch.images, corruption.mask, self.mask_token))
        hidden, valid = corruption.hidden_patches()
        logits = self.predict(gather_rows(features[:, self.backbone.num_prefix_tokens :], hidden))
        return token_loss(logits, token_ids.gather(1, hidden), hidden, valid=valid, return_logits=return_logits)
