"""MaPeT: masked and permuted prediction of visual tokens.

A random permutation of the patches is cut into a context and T targets. Every target is predicted from the context, from the
contents of the targets before it, and from mask tokens (a learned vector plus position) in place of itself and of the targets
after it. So the model has all positions, as in masked prediction, and learns the dependencies between targets, as in
permuted prediction; every row sees exactly N positions, as in fine-tuning.

    minimise   - sum_{t > c}  log p( token(z_t) | patches z_{<t},  mask tokens z_{>=t} )      over permutations z

Source: Baraldi et al., "Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training", section 3.2. The cutting
point c of the paper counts the class token; `num_context` = c - 1 counts patches. Layout and masks: `models/two_stream.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.errors import ModelError, SettingsError, nearest
from mapet.models.backbone import blocks_of, embed_patches, enter_blocks, grid_size, patch_positions, prefix_tokens
from mapet.models.two_stream import mapet_visibility, two_stream
from mapet.objectives.base import MaskedTokenObjective, ObjectiveOutput, token_loss
from mapet.objectives.block_masks import block_masks
from mapet.objectives.encoding import gather_rows
from mapet.objectives.masking import context_first, count_of, random_permutation

CONTEXTS = ("random", "block")


@dataclass(frozen=True)
class PermutationCorruption:
    """The order in which patches are visited.

    Args:
        permutation: (B, N_p) int64, 0-based patches; the first `num_context` are context, the others targets.
    """

    permutation: Tensor


class PermutedTokenObjective(MaskedTokenObjective[PermutationCorruption]):
    """Predicts the tokens of the last patches of a random permutation with two-stream attention.

    Args:
        backbone: A plain timm ViT, trained in place.
        vocab_size: Number of visual tokens.
        num_context: Number of patches in the context, or their share; by default a quarter of them.
        context: Which patches those are: "random", the first of a uniformly random permutation, as published; or "block", what is
            visible when rectangles of patches are hidden as in BEiT. Either way targets come in uniformly random order.
        predict_last: Predict only so many targets, or this share of them, the last of the permutation (XLNet's partial prediction).
            Earlier targets have no query, but are contents that later ones see; by default all are predicted.
    """

    mask_tokens_are_seen: ClassVar[bool]
    visibility: ClassVar[Callable[[int, int], Tensor]]
    visible: Tensor

    def __init__(
        self,
        backbone: VisionTransformer,
        vocab_size: int,
        num_context: float | None = None,
        context: str = "random",
        predict_last: float | None = None,
    ) -> None:
        super().__init__(backbone, vocab_size, num_context)
        if context not in CONTEXTS:
            raise SettingsError(f"There is no context '{context}'. {nearest(context, CONTEXTS)}")
        self.context = context
        last = self.num_targets if predict_last is None else predict_last
        self.num_predicted = count_of("predict_last", last, self.num_targets, 1, self.num_targets, "targets")
        prefix_length = backbone.num_prefix_tokens + self.num_context + self.num_targets * self.mask_tokens_are_seen
        self.check_first_query_sees(prefix_length)
        contents, queries = type(self).visibility(prefix_length, self.num_targets).chunk(2)
        self.register_buffer("visible", torch.cat([contents, queries[-self.num_predicted :]]), persistent=False)
        if context == "block":
            self._hide_blocks(1, torch.Generator(), "cpu")  # a grid without room for blocks is refused now

    @property
    def sequence_length(self) -> float:
        """Open rows and contents, and one query a predicted target."""
        return self.visible.shape[1] + self.num_predicted

    def check_first_query_sees(self, prefix_length: int) -> None:
        """Refuses a configuration in which the first query would see nothing at all."""
        if prefix_length == 0 and self.num_predicted == self.num_targets:
            raise ModelError(
                f"{type(self).__name__} with num_context=0 on a backbone without a class token leaves the first target "
                "nothing to be predicted from. Use num_context of at least 1."
            )

    def corrupt(self, batch: Batch, generator: torch.Generator) -> PermutationCorruption:
        """A random permutation for every image, uniform over those that begin with such a context."""
        batch_size, device = batch.images.shape[0], batch.images.device
        permutation = random_permutation(batch_size, self.num_patches, generator, device)
        if self.context == "block":
            permutation = context_first(permutation, self._hide_blocks(batch_size, generator, device))
        return PermutationCorruption(permutation)

    def _hide_blocks(self, batch_size: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        return block_masks(batch_size, grid_size(self.backbone), self.num_targets, generator, device)

    def forward(self, batch: Batch, corruption: PermutationCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy of the tokens of all predicted targets; logits are in the order of the permutation."""
        token_ids = self.check_tokens(batch)
        context, targets = corruption.permutation.split([self.num_context, self.num_targets], dim=1)
        predicted = targets[:, -self.num_predicted :]
        positions = patch_positions(self.backbone)
        patches = embed_patches(self.backbone, batch.images) + positions
        mask_tokens = gather_rows(self.mask_token + positions, targets)
        prefix = [prefix_tokens(self.backbone, len(patches)), gather_rows(patches, context)]
        if self.mask_tokens_are_seen:
            prefix.append(mask_tokens)
        queries = two_stream(
            blocks_of(self.backbone),
            enter_blocks(self.backbone, torch.cat(prefix, dim=1)),
            enter_blocks(self.backbone, gather_rows(patches, targets)),
            enter_blocks(self.backbone, mask_tokens[:, -self.num_predicted :]),
            self.visible,
            checkpointing=self.backbone.grad_checkpointing,
        )
        return token_loss(self.predict(queries), token_ids.gather(1, predicted), predicted, return_logits=return_logits)


class MaPeT(PermutedTokenObjective):
    """Masked and permuted pre-training: targets see the context, earlier targets, and mask tokens for all others."""

    summary = "tokens in a random order, every target sees mask tokens for the rest"
    mask_tokens_are_seen = True
    visibility = staticmethod(mapet_visibility)
