"""BEiT: masked prediction of visual tokens, block-wise.

As MIM, but what is hidden are rectangles of patches (75 of 196), so that a hidden patch has few visible neighbours to copy from.

    minimise   - sum_{i hidden}  log p( token(i) | visible patches, mask tokens )

Source: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", section 2.3; the masks: `block_masks.py`. BEiT v2 hides
exactly 75 patches, the first version up to 75 (`filling="under-fill"`); an image then counts by its own number of targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mapet.checkpoints.projections import join_biases
from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.models.backbone import grid_size
from mapet.models.weights import load_strictly
from mapet.objectives.block_masks import HIDDEN_SHARE, block_masks
from mapet.objectives.masking import MaskCorruption
from mapet.objectives.mim import MIM


class BEiT(MIM):
    """Masked pre-training on blocks of patches, one stream, full attention.

    Args:
        backbone: A plain timm ViT, trained in place.
        vocab_size: Number of visual tokens.
        num_context: Number of patches that stay visible, or their share; by default 121 of 196.
        filling: What completes a mask when no rectangle fits any more; see `block_masks`.
        min_block: Smallest target area of a rectangle, in patches; by default 16 of 196.
    """

    summary = "masked tokens, blocks of patches hidden"

    def __init__(
        self,
        backbone: VisionTransformer,
        vocab_size: int,
        num_context: float | None = None,
        filling: str = "top-up",
        min_block: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        super().__init__(backbone, vocab_size, 1 - HIDDEN_SHARE if num_context is None else num_context)
        self.filling, self.min_block = filling, min_block
        block_masks(1, grid_size(backbone), self.num_targets, torch.Generator(), "cpu", filling=filling, min_block=min_block)

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides blocks of patches, all but `num_context` of an image or, with "under-fill", up to so many."""
        size, device = batch.images.shape[0], batch.images.device
        settings = {"filling": self.filling, "min_block": self.min_block}
        mask = block_masks(size, grid_size(self.backbone), self.num_targets, generator, device, **settings)
        return MaskCorruption.of_known_counts(mask, self.num_targets, equal=self.filling != "under-fill")

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a BEiT pre-training checkpoint with absolute positions, under its published key names.

        Raises:
            ModelError: Lists the keys that are missing, left over or of another shape.
        """
        load_strictly(
            self, {released_name(key): value for key, value in join_biases(state_dict).items()}, optional=("backbone.head.",)
        )


def released_name(key: str) -> str:
    """Our name of a parameter of BEiT's release."""
    key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
    return key.replace("lm_head.", "head.") if key.startswith(("mask_token", "lm_head.")) else f"backbone.{key}"
