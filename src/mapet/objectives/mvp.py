"""MVP: masked prediction of a teacher's features.

One linear layer predicts a frozen teacher's features of the hidden patches (in the paper CLIP's image tower).

    minimise   mean over hidden patches of  1 - cos( prediction, teacher's feature )

Source: Wei et al., "MVP: Multimodality-guided Visual Pre-training"; blocks of patches are hidden as in BEiT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.compat import VisionTransformer
from mapet.data.batch import Batch
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.errors import ModelError
from mapet.models.backbone import grid_size, image_size
from mapet.models.weights import init_linears
from mapet.objectives.base import ObjectiveOutput
from mapet.objectives.block_masks import HIDDEN_SHARE, block_masks
from mapet.objectives.encoding import encode_masked
from mapet.objectives.masking import MaskCorruption, count_of
from mapet.objectives.pixels import PixelObjective
from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import FeatureExtractor, create_features
from mapet.tokenizers.load import load_tokenizer


class MVP(PixelObjective[MaskCorruption]):
    """Predicts a teacher's features of masked patches.

    The teacher's weights are part of the checkpoints, so that a run is continued exactly whatever became of their source.

    Args:
        backbone: A plain timm ViT, trained in place.
        teacher: The folder of a k-means tokenizer, for the features that it clusters; or what `create_features` takes, as long as
            it needs no images to be fitted: a timm model, a run of our own.
        mean: Per channel, what the images of a batch were normalised with.
        std: Per channel.
        mask_ratio: Share of the patches that are hidden, or their number.
        teacher_size: Side of the teacher's images in pixels, where `teacher` is no tokenizer; by default the backbone's.
        teacher_options: Further options of `create_features`.
    """

    summary = "masked features of a teacher, blocks hidden"
    needs = ("pixels", "teacher")
    unused = r"backbone\.head\.|teacher\."

    def __init__(
        self,
        backbone: VisionTransformer,
        teacher: str,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        mask_ratio: float = HIDDEN_SHARE,
        teacher_size: int | None = None,
        teacher_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, mean, std)
        self.num_hidden = count_of("mask_ratio", mask_ratio, self.num_patches, 1, self.num_patches - 1)
        size = image_size(backbone)[0] if teacher_size is None else teacher_size
        self.teacher = _open_teacher(teacher, size, grid_size(backbone), teacher_options or {}).eval().requires_grad_(False)
        if self.teacher.grid_size != grid_size(backbone):
            raise ModelError(f"The teacher describes {self.teacher.grid_size} patches, the backbone makes {grid_size(backbone)}.")
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.embed_dim))
        self.head = nn.Linear(backbone.embed_dim, self.teacher.dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        init_linears(self.head)

    def train(self, mode: bool = True) -> MVP:
        """The teacher never trains."""
        super().train(mode)
        self.teacher.eval()
        return self

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        """Hides blocks of patches."""
        mask = block_masks(len(batch.images), grid_size(self.backbone), self.num_hidden, generator, batch.images.device)
        return MaskCorruption.of_known_counts(mask, self.num_hidden, equal=True)

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        """One minus the cosine, summed over hidden patches."""
        predicted = self.head(encode_masked(self.backbone, batch.images, corruption.mask, self.mask_token))
        errors = 1 - F.cosine_similarity(predicted, self.features(batch.images), dim=2)
        return ObjectiveOutput(errors.where(corruption.mask, 0).sum(), corruption.mask.sum())

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The teacher's features of every patch, (B, N_p, dim)."""
        if len(images) == 0:
            return images.new_zeros(0, self.num_patches, self.teacher.dim)  # timm's ViTs need one at least
        pixels, size = self.pixels(images).clamp(0, 1), self.teacher.image_size
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.teacher(pixels).flatten(1, 2)


def _open_teacher(name: str, size: int, grid: tuple[int, int], options: Mapping[str, Any]) -> FeatureExtractor:
    """The features of the tokenizer at `name`, or those that `create_features` calls so."""
    if (Path(name) / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(name)
        if not isinstance(tokenizer, FeatureKMeans):
            raise ModelError(f"{name} is a '{tokenizer.kind}' tokenizer, which has no features. Give a k-means tokenizer.")
        return tokenizer.features
    features = create_features(name, image_size=size, patch_size=size // grid[0], **options)
    if features.images_to_fit:
        raise ModelError(
            f"The features '{name}' are fitted on images, which an objective does not have. Fit a tokenizer on them (mapet "
            f"tokenizer fit DATA --features {name} --out TOK) and give its folder as the teacher."
        )
    features.fit(torch.empty(0, 3, size, size), seeded_generator(0, "teacher"))
    return features
