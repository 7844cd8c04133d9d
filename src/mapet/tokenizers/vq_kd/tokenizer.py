"""VQ-KD (Peng et al. 2022, BEiT v2): a ViT with a codebook, whose codes represent a teacher's features of every patch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.checkpoints.projections import join_biases
from mapet.config.architecture import check_architecture
from mapet.errors import ModelError, TokenizerError
from mapet.models.backbone import create_backbone, grid_size
from mapet.models.weights import load_strictly
from mapet.registry import check_options
from mapet.runtime.device import autocast
from mapet.runtime.progress import say
from mapet.tokenizers.base import Tokenizer, check_size
from mapet.tokenizers.clustering.nearest import nearest_centroid

# Names that `from_settings` and `from_released` put in place of sizes.
_PLAIN_VIT = "vit_base_patch16_224"
_SET_ELSEWHERE = ("img_size", "num_classes", "global_pool", "fc_norm")
# What a published checkpoint holds besides what tokens need, by the beginnings of the names.
_TRAINING_ONLY = ("loss", "teacher", "scaling", "decoder.", "decode_task_layer.", "quantize.cluster_size")
_DEAD = ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg", "quantize.embedding.initted")
_CODEBOOK = "quantize.embedding.weight"
_HEAD_WIDTH = 64
_LONGEST_CODE = 4096


class VQKD(Tokenizer):
    """A ViT gives each patch a code, a unit vector; its token is the id of the codebook entry in the most similar direction.

    Images are mapped to [-1, 1], as the published models were trained. Everything is computed in float32: BEiT v2 takes its tokens
    under autocast, so where two entries are nearly equal it may choose the other one. `encode` changes nothing; the published
    model counts the use of its codes even then.

    Args:
        image_size: Height and width of its images in pixels.
        vocab_size: Number of tokens.
        code_dim: Length of a code.
        encoder: Name of a plain timm ViT.
        encoder_options: Keyword arguments of `timm.create_model` for it.

    Raises:
        ModelError: timm has no such encoder, or it is no plain ViT.
        TokenizerError: A size below 1, or an option that is set by something else.
    """

    kind = "vq_kd"
    codebook: Tensor

    def __init__(
        self,
        image_size: int = 224,
        vocab_size: int = 8192,
        code_dim: int = 32,
        encoder: str = _PLAIN_VIT,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(encoder_options or {})
        if misplaced := [name for name in _SET_ELSEWHERE if name in options]:
            raise TokenizerError(f"{misplaced[0]} is no option of VQ-KD's encoder; it follows from what a tokenizer is.")
        check_architecture(options, TokenizerError, "The options of VQ-KD's encoder")
        check_size("code_dim", code_dim, _LONGEST_CODE)
        if min(image_size, vocab_size, code_dim) < 1:
            raise TokenizerError(f"Image size ({image_size}), vocabulary ({vocab_size}) and code_dim ({code_dim}) are at least 1.")
        vit = create_backbone(encoder, **options, img_size=image_size, num_classes=0, global_pool="avg")
        super().__init__(vocab_size, grid_size(vit), image_size)
        self.code_dim, self.encoder_name, self.encoder_options = code_dim, encoder, options
        self.encoder, self.encode_task_layer = vit, task_layer(vit.embed_dim, code_dim)
        self.register_buffer("codebook", torch.full((vocab_size, code_dim), float("nan")))
        self.eval().requires_grad_(False)

    def codes(self, images: Tensor, precision: str = "fp32") -> Tensor:
        """Unit vectors (B, gh, gw, code_dim) of images (B, 3, image_size, image_size) in [0, 1].

        Args:
            images: The images.
            precision: In which the ViT runs; its last layers are float32 in any case.
        """
        with autocast(images.device, precision):
            patches = patch_features(self.encoder, 2 * images - 1)
        codes = self.encode_task_layer(patches.to(self.codebook.dtype))
        return F.normalize(codes, dim=-1).unflatten(1, self.grid_size)

    def tokens(self, images: Tensor) -> Tensor:
        """Ids (B, gh, gw) int64 of images (B, 3, image_size, image_size) in [0, 1]."""
        codes = self.codes(images)
        return nearest_centroid(codes.flatten(0, 2), self.codebook).view(codes.shape[:3])

    def settings(self) -> dict[str, Any]:
        """Sizes and the encoder."""
        sizes = {"image_size": self.image_size, "vocab_size": self.vocab_size, "code_dim": self.code_dim}
        return {**sizes, "encoder": self.encoder_name, "encoder_options": self.encoder_options}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Builds it from `settings`, with a codebook that is NaN until it is loaded."""
        check_options("The tokenizer 'vq_kd'", cls, settings, TokenizerError)
        return cls(**settings)

    @classmethod
    def from_released(cls, tensors: Mapping[str, Tensor], num_heads: int | None = None) -> Self:
        """The tokenizer with published weights; its sizes follow from their shapes.

        The decoder, the teacher and statistics of the training are left out, and named in `fit_report["dropped"]`.

        Args:
            tensors: A published checkpoint's tensors, under their names there.
            num_heads: Of the encoder's attention, which no shape contains; published models have heads of width 64.

        Raises:
            TokenizerError: They are not those of VQ-KD; the message has the missing, unknown or misshapen ones.
        """
        _check_released(tensors)
        tokenizer = cls.from_settings(_released_settings(tensors, num_heads))
        dropped = [name for name in tensors if name.startswith(_TRAINING_ONLY) or name in _DEAD]
        try:
            load_strictly(tokenizer, to_mapet_names({name: tensors[name] for name in tensors if name not in dropped}))
        except ModelError as error:
            raise TokenizerError(f"These are not the weights of VQ-KD, or not all. {error}") from error
        tokenizer.fit_report["dropped"] = dropped
        return tokenizer


def task_layer(width: int, output: int) -> nn.Sequential:
    """The two layers between a ViT and the codes, and between another ViT and the teacher's features."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, output))


def patch_features(vit: Any, images: Tensor) -> Tensor:
    """(B, N_p, D) behind the last norm, which never sees the class token."""
    return vit.fc_norm(vit.forward_features(images)[:, vit.num_prefix_tokens :])


def to_mapet_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under the names of ours: biases of queries and values joined, those of keys zero."""
    joined = join_biases({name: value.float() for name, value in tensors.items()})
    return {"codebook" if name == _CODEBOOK else name: value for name, value in joined.items()}


_SIZED_BY = ("encoder.patch_embed.proj.weight", "encoder.pos_embed", "encode_task_layer.2.weight", _CODEBOOK)


def _check_released(tensors: Mapping[str, Tensor]) -> None:
    """Refuses what sizes cannot be read from, and a codebook that was never started."""
    missing = [name for name in _SIZED_BY if name not in tensors]
    if missing:
        examples = ", ".join(list(tensors)[:3]) or "nothing"
        raise TokenizerError(
            f"These are not the weights of VQ-KD: {', '.join(missing)} missing; found {len(tensors)} tensors: {examples} ... Give "
            "a checkpoint of BEiT v2's VQ-KD, such as vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth."
        )
    wrong = [
        f"{name} {tuple(tensors[name].shape)}" for name, n in zip(_SIZED_BY, (4, 3, 2, 2), strict=True) if tensors[name].ndim != n
    ]
    if wrong:
        raise TokenizerError(f"These are not the weights of VQ-KD: unexpected shapes of {', '.join(wrong)}.")
    started = tensors.get("quantize.embedding.initted")
    if started is not None and not started.any():
        raise TokenizerError(
            "The codebook of these VQ-KD weights was never started (initted is 0); train on, or give a later file."
        )


def _released_settings(tensors: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """What `from_settings` needs, read from the shapes of published tensors."""
    kernel, positions, code, codebook = (tensors[name].shape for name in _SIZED_BY)
    width, patch = kernel[0], kernel[2]
    if num_heads is None and width % _HEAD_WIDTH:
        raise TokenizerError(f"The encoder is {width} wide, no multiple of {_HEAD_WIDTH}: give the number of its attention heads.")
    heads = num_heads or width // _HEAD_WIDTH
    if width % heads:
        raise TokenizerError(f"An encoder {width} wide cannot have {heads} heads. Allowed: divisors of {width}.")
    if num_heads is None:
        say(f"The weights of VQ-KD do not contain the number of heads; {heads} are assumed ({_HEAD_WIDTH} wide).")
    blocks = {name.split(".")[2] for name in tensors if re.match(r"encoder\.blocks\.\d+\.", name)}
    options = {"patch_size": patch, "embed_dim": width, "depth": len(blocks), "num_heads": heads}
    sizes = {"image_size": math.isqrt(positions[1] - 1) * patch, "vocab_size": codebook[0], "code_dim": code[0]}
    return {**sizes, "encoder": _PLAIN_VIT, "encoder_options": options}
