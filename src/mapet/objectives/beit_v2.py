"""BEiT v2: BEiT, and a class token that has to summarise the image.

Beside BEiT's loss, the final class token together with the patches of an earlier block passes two further blocks and predicts the
same tokens again. Patch features at that depth are not sufficient, so the class token must provide the rest: a bottleneck that
makes it a summary of the image. The further blocks are discarded after pre-training.

    minimise   - sum_{i hidden}  log p( token(i) | patches at the last block )  +  log p( token(i) | early patches, class token )

Source: Peng et al., "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers", section 2.3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mapet.checkpoints.projections import join_biases
from mapet.compat import LayerScale, VisionTransformer
from mapet.config.architecture import Depth
from mapet.data.batch import Batch
from mapet.errors import ModelError
from mapet.models.backbone import blocks_of, final_norm
from mapet.models.weights import init_linears, load_strictly
from mapet.objectives.base import ObjectiveOutput, token_loss
from mapet.objectives.beit import BEiT, released_name
from mapet.objectives.encoding import gather_rows, masked_sequence, run_blocks
from mapet.objectives.masking import MaskCorruption


class BEiTv2(BEiT):
    """BEiT with patch aggregation through the class token.

    Args:
        backbone: A plain timm ViT with one class token, trained in place.
        vocab_size: Number of visual tokens.
        num_context: Number of patches that stay visible, or their share; by default 121 of 196.
        filling: What completes a mask when no rectangle fits any more; see `block_masks`.
        min_block: Smallest target area of a rectangle, in patches; by default 16 of 196.
        early_layers: After how many blocks the early patches are taken; by default three quarters of them (9 of 12).
        head_layers: Number of further blocks.
        shared_head: Whether norm and head of the two losses are the same.
    """

    summary = "masked tokens, blocks of patches hidden, predicted through the class token too"

    def __init__(
        self,
        backbone: VisionTransformer,
        vocab_size: int,
        num_context: float | None = None,
        filling: str = "top-up",
        min_block: Annotated[int, Field(ge=1)] | None = None,
        early_layers: int | None = None,
        head_layers: Depth = 2,
        shared_head: bool = True,
    ) -> None:
        super().__init__(backbone, vocab_size, num_context, filling, min_block)
        depth = len([*blocks_of(backbone)])
        self.early_layers = max(1, min(depth - 1, round(depth * 3 / 4))) if early_layers is None else early_layers
        if backbone.cls_token is None or backbone.num_prefix_tokens != 1:
            raise ModelError(
                f"BEiT v2 predicts through the class token; this backbone has {backbone.num_prefix_tokens} prefix tokens. Use a "
                "ViT with a class token and no registers, or the objective 'beit'."
            )
        if not 1 <= self.early_layers < depth or head_layers < 1:
            raise ModelError(
                f"early_layers is {self.early_layers} and head_layers {head_layers}; with {depth} blocks, early_layers lies "
                f"between 1 and {depth - 1}, and head_layers is at least 1."
            )
        self.head_blocks = nn.Sequential(*(_fresh_copy([*blocks_of(backbone)][-1]) for _ in range(head_layers)))
        self.head_norm = None if shared_head else _fresh_copy(final_norm(backbone))
        self.second_head = None if shared_head else _fresh_copy(self.head)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """Sum of both cross-entropies over all hidden patches; logits are the last block's, in raster order."""
        token_ids = self.check_tokens(batch)
        rows = masked_sequence(self.backbone, batch.images, corruption.mask, self.mask_token)
        blocks = [*blocks_of(self.backbone)]
        early = run_blocks(self.backbone, rows, blocks[: self.early_layers])
        last = run_blocks(self.backbone, early, blocks[self.early_layers :])
        through_class = run_blocks(self.backbone, torch.cat([last[:, :1], early[:, 1:]], dim=1), self.head_blocks)
        hidden, valid = corruption.hidden_patches()
        targets = token_ids.gather(1, hidden)
        first = token_loss(
            self.predict(gather_rows(last[:, 1:], hidden)), targets, hidden, valid=valid, return_logits=return_logits
        )
        second = token_loss(self.predict_again(gather_rows(through_class[:, 1:], hidden)), targets, hidden, valid=valid)
        metrics = {**first.metrics, "correct_through_class": second.metrics["correct"]}
        prediction = (first.logits, first.target_positions)
        return ObjectiveOutput(first.loss_sum + second.loss_sum, first.num_targets, metrics, *prediction)

    def predict_again(self, features: Tensor) -> Tensor:
        """(B, T, D) outputs of the further blocks to (B, T, vocab) logits."""
        norm = final_norm(self.backbone) if self.head_norm is None else self.head_norm
        return (self.head if self.second_head is None else self.second_head)(norm(features))

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a BEiT v2 pre-training checkpoint, under its published key names; relative positions have no place in a plain ViT.

        Raises:
            ModelError: Lists the keys that are missing, left over or of another shape.
        """
        renamed = {_our_name(key): value for key, value in join_biases(state_dict).items()}
        load_strictly(self, renamed, optional=("backbone.head.", "backbone.pos_embed"))


def _our_name(key: str) -> str:
    name = released_name(key)
    for theirs, ours in (("cls_pt_layers.", "head_blocks."), ("cls_pt_norm.", "head_norm."), ("cls_pt_lm_head.", "second_head.")):
        name = name.replace(f"backbone.{theirs}", ours)
    return name


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A module of the same make with weights of its own: truncated normal of 0.02, biases 0, norms and scales as they begin."""
    fresh = copy.deepcopy(module)
    init_linears(fresh)
    for part in fresh.modules():
        if isinstance(part, nn.LayerNorm | LayerScale):
            part.reset_parameters()
    return fresh
