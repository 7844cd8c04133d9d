"""DALL-E's discrete VAE encoder, which BEiT and CAE predict the tokens of: its published weights in Hugging Face's architecture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import mapet.compat  # noqa: F401  (repairs torchvision before transformers imports it)
from mapet.errors import ModelError, TokenizerError, in_one_line
from mapet.models.weights import load_strictly
from mapet.registry import check_options
from mapet.runtime.device import without_memory
from mapet.tokenizers.base import Tokenizer, check_size

HUB_NAME = "facebook/flava-image-codebook"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_INPUTS = ("blocks.input.w", "blocks.input.weight")  # OpenAI's name and Hugging Face's
_GROUPS, _STRIDE = 4, 8  # three poolings by two
_WIDEST, _DEEPEST = 4096, 64


class DallE(Tokenizer):
    """A convolutional encoder whose strongest channel at each of its positions is the token (Ramesh et al. 2021).

    Images are resized with Lanczos and mapped to 0.8 x + 0.1, as DALL-E was trained. Everything is computed in float32. The
    original runs most of its convolutions in float16 on a GPU, so where two channels are nearly equal it may choose the other one.

    Args:
        hidden_size: Channels of the first group; the other three have 2, 4 and 8 times as many.
        blocks_per_group: Residual blocks in each of the four groups.
        vocab_size: Number of tokens.
        image_size: Height and width of its images in pixels, a multiple of 8; published and by BEiT 112, a grid of 14 x 14.
    """

    kind = "dall_e"
    interpolation = "lanczos"

    def __init__(self, hidden_size: int = 256, blocks_per_group: int = 2, vocab_size: int = 8192, image_size: int = 112) -> None:
        check_size("hidden_size", hidden_size, _WIDEST)
        check_size("blocks_per_group", blocks_per_group, _DEEPEST)
        if min(hidden_size // 4, blocks_per_group, vocab_size, image_size) < 1 or image_size % _STRIDE:
            raise TokenizerError(
                f"DALL-E's encoder cannot have hidden size {hidden_size}, {blocks_per_group} blocks, vocabulary {vocab_size} and "
                f"images of {image_size} px. Allowed: hidden size 4 or more, images a multiple of {_STRIDE} px, all positive."
            )
        grid = image_size // _STRIDE
        super().__init__(vocab_size, (grid, grid), image_size)
        self.hidden_size, self.blocks_per_group = hidden_size, blocks_per_group
        self.encoder = _empty_encoder(hidden_size, blocks_per_group, vocab_size)
        self.eval().requires_grad_(False)

    def logits(self, images: Tensor) -> Tensor:
        """(B, vocab_size, gh, gw) float32 of images (B, 3, image_size, image_size) in [0, 1]."""
        return self.encoder(0.8 * images + 0.1)

    def tokens(self, images: Tensor) -> Tensor:
        """Ids (B, gh, gw) int64 of images (B, 3, image_size, image_size) in [0, 1]."""
        return self.logits(images).argmax(dim=1)

    def settings(self) -> dict[str, Any]:
        """Sizes."""
        names = ("hidden_size", "blocks_per_group", "vocab_size", "image_size")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Builds it from `settings`, with weights that are NaN until they are loaded."""
        check_options("The tokenizer 'dall_e'", cls, settings, TokenizerError)
        return cls(**settings)

    @classmethod
    def from_released(cls, tensors: Mapping[str, Tensor], image_size: int = 112) -> Self:
        """The encoder with published weights; its sizes follow from their shapes.

        Args:
            tensors: All of OpenAI's encoder.pkl or of Hugging Face's image codebook, under their names there; or a model that
                contains one, of which the other tensors are left out and named in `fit_report["dropped"]`.
            image_size: Height and width of the images in pixels.

        Raises:
            TokenizerError: They are not those of DALL-E's encoder; the message has the missing, unknown or misshapen ones.
        """
        prefix = next((name.removesuffix(end) for name in tensors for end in _INPUTS if name.endswith(end)), None)
        if prefix is None:
            raise TokenizerError(f"These are not the weights of DALL-E's encoder: none is called {' or '.join(_INPUTS)}.")
        weights = {
            hugging_face_name(name.removeprefix(prefix)): value for name, value in tensors.items() if name.startswith(prefix)
        }
        kernel, output = weights["blocks.input.weight"], weights.get("blocks.output.conv.weight")
        if kernel.ndim != 4 or kernel.shape[-1] == 1 or output is None or output.ndim != 4:
            raise TokenizerError(
                f"These are not the weights of DALL-E's encoder: blocks.input is {tuple(kernel.shape)}, expected (n, 3, 7, 7), "
                "and a blocks.output.conv. If this is DALL-E's decoder, give encoder.pkl."
            )
        tokenizer = cls(len(kernel), _count_blocks(weights), len(output), image_size)
        try:
            load_strictly(tokenizer.encoder, weights)
        except ModelError as error:
            raise TokenizerError(f"These are not the weights of DALL-E's encoder, or not all. {error}") from error
        if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise TokenizerError(
                f"These weights of DALL-E's encoder are damaged: {broken[0]} holds NaN or infinity. Get them again."
            )
        if dropped := [name for name in tensors if not name.startswith(prefix)]:
            tokenizer.fit_report["dropped"] = dropped
        return tokenizer


def hugging_face_name(name: str) -> str:
    """OpenAI's name of a tensor as Hugging Face's FlavaImageCodebook has it; the latter's names as they are."""
    name = re.sub(r"^blocks\.(group_\d+)\.(block_\d+)\.", r"blocks.\1.group.\2.", name)
    name = name.replace(".res_path.conv_", ".res_path.path.conv_")
    return re.sub(r"\.b$", ".bias", re.sub(r"\.w$", ".weight", name))


def is_dall_e(names: Iterable[str]) -> bool:
    """Whether tensors of these names are, or contain, DALL-E's encoder (or its decoder, which `from_released` refuses)."""
    return any(name.endswith(_INPUTS) for name in names)


def download_from_hub() -> Path:
    """The weights that Hugging Face publishes as `HUB_NAME`, from its cache or the network.

    Raises:
        TokenizerError: They are in neither.
    """
    from huggingface_hub import hf_hub_download

    for file in _HUB_FILES:
        try:
            return Path(hf_hub_download(HUB_NAME, file))
        except Exception as error:  # huggingface_hub passes on whatever its connection raises, besides its own
            reason = in_one_line(error)
    raise TokenizerError(
        f"{HUB_NAME} cannot be downloaded: {reason}. Connect to the network once (Hugging Face keeps it), or give a "
        "local file: its model.safetensors, or OpenAI's encoder.pkl."
    )


def _count_blocks(names: Iterable[str]) -> int:
    """Blocks of the first group, at least 1; the other groups are then checked name by name."""
    return max(1, len({name.split(".")[3] for name in names if name.startswith("blocks.group_1.group.block_")}))


def _empty_encoder(hidden_size: int, blocks_per_group: int, vocab_size: int) -> torch.nn.Module:
    """The architecture with weights that are NaN, made without drawing any random numbers."""
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    config = FlavaImageCodebookConfig(
        num_groups=_GROUPS, num_blocks_per_group=blocks_per_group, hidden_size=hidden_size, vocab_size=vocab_size
    )
    with without_memory():
        encoder = FlavaImageCodebook(config)
    encoder = encoder.to_empty(device=torch.get_default_device())
    for parameter in encoder.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    return encoder
