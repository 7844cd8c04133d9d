"""What every tokenizer is: images in, one token id per patch out, and a fingerprint that no change escapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mapet.config.architecture import LARGEST_IMAGE, LARGEST_VOCABULARY
from mapet.errors import TokenizerError
from mapet.models.weights import fingerprint
from mapet.registry import Registry
from mapet.runtime.files import atomic_directory, write_json
from mapet.runtime.tensors import write_tensors
from mapet.tokenizers.clustering.nearest import full_float32

FORMAT = 1
DESCRIPTION_FILE, WEIGHTS_FILE = "tokenizer.json", "weights.safetensors"


class Tokenizer(nn.Module, ABC):
    """Turns every patch of an image into one of `vocab_size` tokens. It does not change once it is made.

    A subclass names its `kind` (as in `TOKENIZERS`, or "package.module:Class"), raises `code_version` when the same weights would
    give other tokens, and implements `tokens`, `settings` and `from_settings`.

    Args:
        vocab_size: Ids are 0 to vocab_size - 1.
        grid_size: Patches from top to bottom and from left to right.
        image_size: Height and width of its images in pixels; not necessarily those of the backbone.
    """

    kind: ClassVar[str]
    code_version: ClassVar[int] = 1
    # Whether it has tensors that are saved.
    has_weights: ClassVar[bool] = True
    # How images are brought to `image_size`: "bicubic" or "lanczos", both Pillow's.
    interpolation: ClassVar[str] = "bicubic"

    def __init__(self, vocab_size: int, grid_size: tuple[int, int], image_size: int) -> None:
        super().__init__()
        check_size("vocab_size", vocab_size, LARGEST_VOCABULARY)
        check_size("image_size", image_size, LARGEST_IMAGE)
        self.vocab_size, self.grid_size, self.image_size = vocab_size, grid_size, image_size
        self.fit_report: dict[str, Any] = {}

    @property
    def preprocess(self) -> dict[str, Any]:
        """What `encode` expects of its images."""
        return {"image_size": self.image_size, "resize": self.interpolation, "color": "RGB", "range": [0.0, 1.0]}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Token ids (B, gh, gw) int64 of images (B, 3, image_size, image_size), floats in [0, 1].

        Raises:
            TokenizerError: Images of another shape or type, with NaN, or with values outside [0, 1].
        """
        self._check(images)
        with full_float32(images.device):
            return self.tokens(images.float())

    @abstractmethod
    def tokens(self, images: Tensor) -> Tensor:
        """What `encode` returns, for images that it has checked."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `from_settings` needs to build it again, without its tensors; JSON."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Builds it from `settings`; tensors are loaded afterwards."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over kind, code version, settings and every tensor, in hex: equal fingerprints give equal tokens."""
        facts = {"kind": self.kind, "code_version": self.code_version, "settings": self.settings()}
        return fingerprint(self, facts)

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json and, where there are weights, weights.safetensors; the folder appears complete or not at all.

        Raises:
            TokenizerError: `directory` holds something other than a tokenizer.
        """
        directory = Path(directory)
        refuse_other_content(directory)
        with atomic_directory(directory) as partial:
            if state := self.state_dict():
                write_tensors(partial / WEIGHTS_FILE, state)
            write_json(partial / DESCRIPTION_FILE, self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "code_version": self.code_version,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "grid_size": list(self.grid_size),
            "preprocess": self.preprocess,
            "settings": self.settings(),
            "fit_report": self.fit_report,
        }

    def _check(self, images: Tensor) -> None:
        """Refuses images that would silently give wrong tokens."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise TokenizerError(f"This tokenizer takes images of shape (B, 3, {size}, {size}), not {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise TokenizerError(f"This tokenizer takes floats in [0, 1], not {images.dtype}. Divide 8-bit images by 255.")
        if images.numel() == 0:
            return
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise TokenizerError(
                f"This tokenizer takes images with values in [0, 1], not {low:.4g} to {high:.4g}: {_diagnosis(low, high)}"
            )


TOKENIZERS: Registry[type[Tokenizer]] = Registry(
    "tokenizer",
    {
        "feature_kmeans": "mapet.tokenizers.feature_kmeans:FeatureKMeans",
        "vq_kd": "mapet.tokenizers.vq_kd.tokenizer:VQKD",
        "dall_e": "mapet.tokenizers.dall_e:DallE",
        "random_projection": "mapet.tokenizers.random_projection:RandomProjection",
    },
    base="mapet.tokenizers.base:Tokenizer",
)


def check_size(name: str, value: Any, largest: int) -> None:
    """Refuses what is no whole number from 1 to `largest`, before anything of that size is made."""
    if type(value) is not int or not 1 <= value <= largest:
        raise TokenizerError(f"{name} is {value!r:.80}. Allowed: 1 to {largest:,}.")


def refuse_other_content(directory: Path) -> None:
    """Raises a TokenizerError where `directory` holds something other than a tokenizer, which saving one there would replace."""
    if directory.exists() and not (directory / DESCRIPTION_FILE).exists() and (directory.is_file() or any(directory.iterdir())):
        raise TokenizerError(f"{directory} exists and is not a tokenizer; it is left alone. Give another folder to --out.")


def refuse_existing(directory: Path) -> None:
    """Raises a TokenizerError where `directory` holds anything, a tokenizer too: token stores may belong to it."""
    refuse_other_content(directory)
    if (directory / DESCRIPTION_FILE).exists():
        raise TokenizerError(
            f"There is a tokenizer at {directory} already, and token stores may belong to it. Give another --out, or remove it."
        )


def _diagnosis(low: float, high: float) -> str:
    """The likely kind of images with this range, and a remedy."""
    if low != low:
        return "some pixels are NaN. Check how they were decoded or augmented."
    if low >= 0 and high <= 255:
        return "they are probably 8-bit images. Divide them by 255."
    if low >= -3 and high <= 3:
        return "they look ImageNet-normalised. Tokenise first and normalise for the backbone afterwards."
    return "an unknown scale. Scale them to [0, 1]."
