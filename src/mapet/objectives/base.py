"""What every objective is: corruption, loss and metrics on a backbone, and nothing about how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mapet.checkpoints.projections import join_qkv
from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.errors import ModelError
from mapet.models.backbone import check_backbone, final_norm, grid_size, image_size
from mapet.models.weights import load_strictly
from mapet.objectives.masking import count_of

Corruption = TypeVar("Corruption")

IGNORED = -100
NEEDS = ("tokens", "pixels", "teacher")


@dataclass(frozen=True)
class ObjectiveOutput:
    """Sums and counts; whoever trains divides one by the other over all ranks and micro-batches.

    Args:
        loss_sum: Scalar, the loss summed over all targets of the batch.
        num_targets: Scalar int64, how many targets that were.
        metrics: Name to scalar, each a sum over targets ("correct": targets whose token was the likeliest).
        logits: (B, T, vocab) where requested.
        target_positions: (B, T) int64 where requested: 0-based patches that the logits are about, -1 where an image has fewer
            targets than another.
    """

    loss_sum: Tensor
    num_targets: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    target_positions: Tensor | None = None


class Objective(nn.Module, ABC, Generic[Corruption]):
    """A way to pre-train a backbone: `corrupt` draws what is hidden, calling the objective gives the loss.

    A corruption is a frozen dataclass of tensors whose first dimension is the batch, so that it can be narrowed to a micro-batch.

    Class attributes:
        summary: One line for `mapet objectives`.
        needs: What it cannot do without, of `NEEDS`. With "tokens" it is given `vocab_size`; with "pixels" it has the options
            `mean` and `std` with which `Batch.images` were normalised.
        unused: Regular expression, matched from the beginning of a name: parameters that get no gradient.

    Args:
        backbone: A plain timm ViT, trained in place.
    """

    summary: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[str] = r"backbone\.head\."

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        check_backbone(backbone)
        self.backbone = backbone
        rows, columns = grid_size(backbone)
        self.num_patches = rows * columns

    @abstractmethod
    def corrupt(self, batch: Batch, generator: torch.Generator) -> Corruption:
        """Draws what is hidden from the model, on the batch's device, from `generator` alone."""

    @abstractmethod
    def forward(self, batch: Batch, corruption: Corruption, return_logits: bool = False) -> ObjectiveOutput:
        """The loss of predicting what `corruption` hides."""

    @property
    def view_size(self) -> int:
        """Side in pixels of the images in a batch: as the backbone's, unless the objective crops or shrinks them."""
        return image_size(self.backbone)[0]

    @property
    def sequence_length(self) -> float:
        """Rows an image that pass the backbone's blocks, which is what most of its cost goes by."""
        return self.backbone.num_prefix_tokens + self.num_patches

    def before_optimizer_step(self) -> None:
        """Called once an optimizer step, after all backward passes and before the optimizer moves."""


class TokenObjective(Objective[Corruption]):
    """An objective that predicts visual tokens by a linear head behind the backbone's final norm.

    Args:
        backbone: A plain timm ViT, trained in place.
        vocab_size: Number of visual tokens.
    """

    needs = ("tokens",)

    def __init__(self, backbone: VisionTransformer, vocab_size: int) -> None:
        super().__init__(backbone)
        self.vocab_size = vocab_size
        self.head = nn.Linear(backbone.embed_dim, vocab_size)
        self.init_weights()

    def init_weights(self) -> None:
        """The head: truncated normal of 0.02, biases 0. The backbone keeps timm's initialisation."""
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def predict(self, features: Tensor) -> Tensor:
        """(B, T, D) outputs of the last block to (B, T, vocab) logits."""
        return self.head(final_norm(self.backbone)(features))

    def check_tokens(self, batch: Batch) -> Tensor:
        """The batch's token ids, or a ModelError where they are absent or of another grid."""
        expected = (len(batch.images), self.num_patches)
        if batch.token_ids is None or batch.token_ids.shape != expected:
            actual = "none" if batch.token_ids is None else f"ids of shape {tuple(batch.token_ids.shape)}"
            raise ModelError(
                f"{type(self).__name__} needs one visual token for each of the {self.num_patches} patches; the batch has "
                f"{actual}. Use a tokenizer whose grid is that of the backbone."
            )
        return batch.token_ids


class MaskedTokenObjective(TokenObjective[Corruption]):
    """A token objective that hides patches: a mask token, and how many patches stay visible.

    Args:
        backbone: A plain timm ViT, trained in place.
        vocab_size: Number of visual tokens.
        num_context: Number of patches that stay visible, at least 0, or their share, a float between 0 and 1, rounded to whole
            patches; by default a quarter of them, rounded down.
    """

    mask_token: nn.Parameter

    def __init__(self, backbone: VisionTransformer, vocab_size: int, num_context: float | None = None) -> None:
        super().__init__(backbone, vocab_size)
        context = self.num_patches // 4 if num_context is None else num_context
        self.num_context = count_of("num_context", context, self.num_patches, 0, self.num_patches - 1)
        self.num_targets = self.num_patches - self.num_context

    def init_weights(self) -> None:
        """A mask token of the head's width, then the head: truncated normal of 0.02, biases 0."""
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.head.in_features))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        super().init_weights()

    def load_released(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a pre-training checkpoint of MaPeT's release, under its published key names.

        Every parameter must be there and none may be left over; the classification head of the backbone, which the release's
        pre-training model does not have, keeps its values.

        Raises:
            ModelError: Lists the keys that are missing, left over or of another shape.
        """
        renamed = {_OURS.get(name, f"backbone.{name}"): value for name, value in join_qkv(state_dict).items()}
        load_strictly(self, renamed, optional=("backbone.head.",))


def token_loss(
    logits: Tensor, targets: Tensor, positions: Tensor, *, valid: Tensor | None = None, return_logits: bool = False
) -> ObjectiveOutput:
    """Cross-entropy summed over targets.

    Args:
        logits: (B, T, vocab).
        targets: (B, T) int64, the visual tokens; -100, as everywhere in PyTorch, is not a target.
        positions: (B, T) int64, their patches.
        valid: (B, T) bool where some slots are empty; None where all are targets.
        return_logits: Keep logits and positions in the output.
    """
    if valid is not None:
        targets = targets.masked_fill(~valid, IGNORED)
        positions = positions.masked_fill(~valid, -1)
    loss_sum = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED)
    correct = (logits.detach().argmax(dim=-1) == targets).sum()
    num_targets = (targets != IGNORED).sum()
    extras = {"logits": logits, "target_positions": positions} if return_logits else {}
    return ObjectiveOutput(loss_sum, num_targets, {"correct": correct}, **extras)


_OURS = {
    "mask_positional_token": "mask_token",
    "decoder.weight": "head.weight",
    "decoder.bias": "head.bias",
}
