"""What every tokenizer is: images in, one token id per patch out, and a fingerprint that no change escapes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mapet.errors import SettingsError, TokenizerError
from mapet.registry import Registry
from mapet.runtime.files import atomic_directory, recover, write_json
from mapet.tokenizers.nearest import full_float32

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

    def __init__(self, vocab_size: int, grid_size: tuple[int, int], image_size: int) -> None:
        super().__init__()
        self.vocab_size, self.grid_size, self.image_size = vocab_size, grid_size, image_size
        self.fit_report: dict[str, Any] = {}

    @property
    def preprocess(self) -> dict[str, Any]:
        """What `encode` expects of its images."""
        return {"image_size": self.image_size, "color": "RGB", "range": [0.0, 1.0]}

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
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted([*self.named_parameters(), *self.named_buffers()]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, directory: Path | str) -> None:
        """Writes tokenizer.json and, where there are weights, weights.safetensors; the folder appears complete or not at all.

        Raises:
            TokenizerError: `directory` holds something other than a tokenizer.
        """
        directory = Path(directory)
        if directory.exists() and not (directory / DESCRIPTION_FILE).exists() and (directory.is_file() or any(directory.iterdir())):
            raise TokenizerError(f"{directory} exists and is not a tokenizer; it is left alone. Give another folder to --out.")
        with atomic_directory(directory) as partial:
            if state := self.state_dict():
                save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / WEIGHTS_FILE)
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
        "random_projection": "mapet.tokenizers.random_projection:RandomProjection",
    },
)


def _diagnosis(low: float, high: float) -> str:
    """What images of this range most likely are, and the way out."""
    if low != low:
        return "some pixels are NaN. Look at how they were decoded or augmented."
    if low >= 0 and high <= 255:
        return "they look like 8-bit images. Divide them by 255."
    if low >= -3 and high <= 3:
        return "they look ImageNet-normalised. Tokenise first and normalise for the backbone afterwards."
    return "no scale that we know. Bring them to [0, 1]."


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer saved at `path`, checked against its fingerprint, in evaluation mode on the CPU.

    Raises:
        TokenizerError: There is none, it is damaged or incomplete, or it was written by another version.
    """
    path = recover(path)
    description = _read_description(path)
    try:
        kind = TOKENIZERS.get(description["kind"])
        if not issubclass(kind, Tokenizer):
            raise TokenizerError(f"{path} names '{description['kind']}', which is not a tokenizer.")
        tokenizer = kind.from_settings(description["settings"])
        if tokenizer.state_dict():
            tokenizer.load_state_dict(load_file(path / WEIGHTS_FILE))
    except (SettingsError, KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(":.")
        raise TokenizerError(f"The tokenizer at {path} is damaged or incomplete: {reason}. Fit or copy it again.") from error
    tokenizer.fit_report = description.get("fit_report", {})
    tokenizer.eval().requires_grad_(False)
    if tokenizer.fingerprint != description.get("fingerprint"):
        raise TokenizerError(
            f"The tokenizer at {path} is not the one that was saved: its fingerprint is {tokenizer.fingerprint[:12]}, "
            f"tokenizer.json says {str(description.get('fingerprint'))[:12]}. Its files were changed, "
            "or this version computes other tokens. Fit it again."
        )
    return tokenizer


def _read_description(path: Path) -> dict[str, Any]:
    """The content of tokenizer.json, as far as it can be judged without its weights."""
    if not path.is_dir():
        raise TokenizerError(f"There is no tokenizer at {path}. Give a folder made by `mapet tokenizer fit DATA --out FOLDER`.")
    file = path / DESCRIPTION_FILE
    if not file.is_file():
        raise TokenizerError(
            f"{path} is not a tokenizer: it holds no {DESCRIPTION_FILE}. Give a folder made by `mapet tokenizer fit`."
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file} is damaged: {error}. Fit or copy the tokenizer again.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise TokenizerError(f"{file} has format {found}; this version of mapet reads format {FORMAT}. Fit the tokenizer again.")
    return description
