"""Classifiers that see nothing of an image but its visual tokens (MaPeT, Table 7)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, relu

from mapet.compat import VisionTransformer
from mapet.models.backbone import create_backbone
from mapet.models.weights import init_linears

HEADS = ("mlp", "vit")
_PATCH = 16  # patch size in timm's configuration; only the number of patches matters


class TokenMLP(nn.Module):
    """Embedding, Linear, ReLU, mean over the patches, Linear: the order of the tokens plays no part.

    What happens in front of the mean depends on the code alone, so it is computed once for every code and not once for every patch.

    Args:
        vocab_size: Codes.
        width: Of the embedding and of the layer behind it; 192 in the paper (for the embedding it gives no width).
        num_classes: Outputs.
    """

    def __init__(self, vocab_size: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores (B, classes) of token ids (B, N_p) int64."""
        codes = relu(self.hidden(self.embedding.weight))
        return self.head(embedding_bag(ids, codes, mode="mean"))


def token_vit(
    vocab_size: int, grid_size: tuple[int, int], num_classes: int, *, width: int, depth: int, heads: int, drop_path: float
) -> VisionTransformer:
    """A ViT of timm with learned embeddings of the codes in the place of its patch embedding; takes token ids (B, N_p) int64.

    Otherwise the model that the paper fine-tunes: LayerScale 0.1, mean of the patches, LayerNorm, Linear.
    """
    rows, columns = grid_size
    model = create_backbone(
        "vit_tiny_patch16_224",
        img_size=(rows * _PATCH, columns * _PATCH),
        patch_size=_PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=num_classes,
        global_pool="avg",
        init_values=0.1,
        drop_path_rate=drop_path,
    )
    model.patch_embed = cast(nn.Module, nn.Embedding(vocab_size, width))  # type: ignore[assignment]
    return model


def init_head(model: nn.Module) -> None:
    """Linear layers and embeddings: normal of 0.02 (truncated for the layers), biases 0."""
    init_linears(model)
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)


def count_parameters(model: nn.Module) -> int:
    """Of everything that learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def is_finite(losses: list[Tensor]) -> bool:
    """Whether all scalar losses are numbers; waits for the device once."""
    return bool(torch.stack(losses).isfinite().all())
