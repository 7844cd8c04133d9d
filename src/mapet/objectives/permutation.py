"""What MaPeT and PIM share: a permutation of the patches, cut into context and targets, and two streams over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.errors import ModelError
from mapet.models.backbone import blocks_of, embed_patches, enter_blocks, patch_positions, prefix_tokens
from mapet.models.two_stream import two_stream
from mapet.objectives.base import ObjectiveOutput, TokenObjective, token_loss
from mapet.objectives.masking import random_permutation


@dataclass(frozen=True)
class PermutationCorruption:
    """The order in which patches are visited.

    Args:
        permutation: (B, N_p) int64, 0-based patches; the first `num_context` are context, the others targets.
    """

    permutation: Tensor


class PermutedTokenObjective(TokenObjective[PermutationCorruption]):
    """Predicts the tokens of the last patches of a random permutation with two-stream attention.

    Args:
        backbone: A plain timm ViT, trained in place.
        vocab_size: Number of visual tokens.
        num_context: Number of patches in the context; by default a quarter of them.
    """

    mask_tokens_are_seen: ClassVar[bool]
    visibility: ClassVar[Callable[[int, int], Tensor]]
    visible: Tensor

    def __init__(self, backbone: VisionTransformer, vocab_size: int, num_context: int | None = None) -> None:
        super().__init__(backbone, vocab_size, num_context)
        num_open = backbone.num_prefix_tokens + self.num_context + self.num_targets * self.mask_tokens_are_seen
        self.check_first_query_sees(num_open)
        self.register_buffer("visible", type(self).visibility(num_open, self.num_targets), persistent=False)

    def check_first_query_sees(self, num_open: int) -> None:
        """Refuses a configuration in which the first query would see nothing at all."""
        if num_open == 0:
            raise ModelError(
                f"{type(self).__name__} with num_context=0 on a backbone without a class token leaves the first target "
                "nothing to be predicted from. Use num_context of at least 1."
            )

    def corrupt(self, batch: Batch, generator: torch.Generator) -> PermutationCorruption:
        """A uniformly random permutation for every image."""
        return PermutationCorruption(random_permutation(batch.images.shape[0], self.num_patches, generator, batch.images.device))

    def forward(self, batch: Batch, corruption: PermutationCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Cross-entropy of the tokens of all targets; logits are in the order of the permutation."""
        token_ids = self.check_tokens(batch)
        context, targets = corruption.permutation.split([self.num_context, self.num_targets], dim=1)
        positions = patch_positions(self.backbone)
        patches = embed_patches(self.backbone, batch.images) + positions
        mask_tokens = take(self.mask_token + positions, targets)
        open_rows = [prefix_tokens(self.backbone, len(patches)), take(patches, context)]
        if self.mask_tokens_are_seen:
            open_rows.append(mask_tokens)
        queries = two_stream(
            blocks_of(self.backbone),
            enter_blocks(self.backbone, torch.cat(open_rows, dim=1)),
            enter_blocks(self.backbone, take(patches, targets)),
            enter_blocks(self.backbone, mask_tokens),
            self.visible,
            checkpointing=self.backbone.grad_checkpointing,
        )
        return token_loss(self.predict(queries), token_ids.gather(1, targets), targets, return_logits=return_logits)


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows (B or 1, N, D) at `indices` (B, T): (B, T, D)."""
    batch_size, _, width = *indices.shape, rows.shape[-1]
    return rows.expand(batch_size, -1, -1).gather(1, indices.unsqueeze(-1).expand(-1, -1, width))
