"""The training of VQ-KD: a small ViT reconstructs the teacher's features of every patch from the codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.compat import VisionTransformer
from mapet.models.backbone import blocks_of, create_backbone
from mapet.models.weights import init_linears, load_strictly
from mapet.runtime.device import autocast
from mapet.tokenizers.clustering.nearest import full_float32, nearest_centroid
from mapet.tokenizers.vq_kd.codebook import RecentUse, moved_codebook, start_codebook
from mapet.tokenizers.vq_kd.tokenizer import VQKD, patch_features, task_layer, to_mapet_names

# Tensors of a published checkpoint that nothing is computed from.
_NOT_LEARNT = (
    "loss",
    "teacher",
    "scaling",
    "quantize.cluster_size",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_",
)


@dataclass(frozen=True)
class Distilled:
    """What one batch gives, over the patches of this process.

    Args:
        commitment: Scalar, summed over patches: the mean squared difference between a code and its codebook entry.
        reconstruction: Scalar, summed over patches: 1 - cosine between the decoder's and the teacher's features.
        codes: (n, c) unit vectors of all patches, without gradient.
        ids: (n,) the codebook entry of each.
    """

    commitment: Tensor
    reconstruction: Tensor
    codes: Tensor
    ids: Tensor


class Distillation(nn.Module):
    """A tokenizer in training, with its decoder.

    Args:
        tokenizer: Trained in place. Its codebook is not a parameter: `start` and `update_codebook` set it.
        target_dim: Length of the teacher's feature vectors.
        depth: Blocks of the decoder.
        width: Of the decoder; by default that of the encoder.
        num_heads: Of the decoder; by default those of the encoder.
    """

    def __init__(
        self, tokenizer: VQKD, target_dim: int, depth: int = 3, width: int | None = None, num_heads: int | None = None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer.train().requires_grad_(True)
        width = width or tokenizer.encoder.embed_dim
        attention: Any = next(iter(blocks_of(tokenizer.encoder))).attn
        self.decoder = _decoder(tokenizer, depth, width, num_heads or attention.num_heads)
        self.decode_task_layer = task_layer(width, target_dim)
        self.recent = RecentUse(tokenizer.vocab_size)
        init_linears(tokenizer.encode_task_layer)
        init_linears(self.decode_task_layer)

    def forward(self, images: Tensor, targets: Tensor, precision: str = "fp32") -> Distilled:
        """Losses of a batch.

        Args:
            images: (B, 3, image_size, image_size) in [0, 1].
            targets: (B, gh, gw, target_dim) features of the teacher.
            precision: In which the two ViTs run; everything else is float32.
        """
        codes = self.tokenizer.codes(images, precision).flatten(0, 2)
        ids = nearest_centroid(codes.detach(), self.tokenizer.codebook)
        quantised = self.tokenizer.codebook[ids]
        commitment = (quantised - codes).square().mean(1).sum()
        features = self.decode(codes + (quantised - codes).detach(), precision)
        targets = F.normalize(targets.flatten(0, 2).to(features.dtype), dim=1)
        reconstruction = (1 - (F.normalize(features, dim=1) * targets).sum(1)).sum()
        return Distilled(commitment, reconstruction, codes.detach(), ids)

    def decode(self, entries: Tensor, precision: str = "fp32") -> Tensor:
        """The teacher's features (n, target_dim), reconstructed from the codebook's entries (n, c) of all patches."""
        grid = entries.view(-1, *self.tokenizer.grid_size, self.tokenizer.code_dim).permute(0, 3, 1, 2)
        with autocast(entries.device, precision):
            patches = patch_features(self.decoder, grid)
        return self.decode_task_layer(patches.to(entries.dtype)).flatten(0, 1)

    @torch.no_grad()
    def start(self, images: Tensor, generator: torch.Generator, precision: str = "fp32") -> None:
        """Starts the codebook from the images (B, 3, image_size, image_size) of a first batch; see `start_codebook`."""
        codes = self.tokenizer.codes(images, precision).flatten(0, 2)
        with full_float32(images.device):
            self.tokenizer.codebook.copy_(start_codebook(codes, self.tokenizer.vocab_size, generator))

    @torch.no_grad()
    def update_codebook(self, distilled: Distilled, step: int) -> None:
        """Moves the codebook after step number `step`; losses and choices of a step are those of the codebook before it."""
        with full_float32(distilled.codes.device):
            codebook, counts = moved_codebook(self.tokenizer.codebook, distilled.codes, distilled.ids)
        self.tokenizer.codebook.copy_(codebook)
        self.recent.add(counts, step)

    def load_released(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads a published checkpoint, decoder included, strictly: encoder, decoder and codebook.

        Raises:
            ModelError: Lists what is missing, unknown or of another shape.
        """
        learnt = {name: value for name, value in tensors.items() if not name.startswith(_NOT_LEARNT)}
        learnt.pop("quantize.embedding.initted", None)
        weights = {
            name if name.startswith("decode") else f"tokenizer.{name}": value for name, value in to_mapet_names(learnt).items()
        }
        load_strictly(self, weights, optional=("recent.",))


def _decoder(tokenizer: VQKD, depth: int, width: int, num_heads: int) -> VisionTransformer:
    """A ViT with a class token and positions of its own, whose patches are single codes."""
    return create_backbone(
        "vit_base_patch16_224",
        img_size=tokenizer.grid_size,
        patch_size=1,
        in_chans=tokenizer.code_dim,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads,
        num_classes=0,
        global_pool="avg",
    )
