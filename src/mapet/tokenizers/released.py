"""Tokenizers from the files that their authors published, whatever they are called and however they were saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mapet.checkpoints.archive import state_dict_of
from mapet.errors import ModelError, TokenizerError
from mapet.runtime.files import sha256
from mapet.tokenizers.base import Tokenizer
from mapet.tokenizers.dall_e import HUB_NAME, DallE, download_from_hub, is_dall_e

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "encoder.pkl")
_MOST_NAMED = 5


def tokenizer_from_file(path: Path | str, num_heads: int | None = None) -> Tokenizer:
    """The tokenizer whose published weights are in a file; nothing in the file is executed.

    Args:
        path: Weights of VQ-KD or of DALL-E's encoder, of any kind that `read_tensors` reads; a folder of Hugging Face with them;
            or `HUB_NAME`, which is downloaded.
        num_heads: Attention heads of a VQ-KD, which its weights do not contain; None: heads of width 64.

    Returns:
        The tokenizer, on the CPU; `fit_report` has its file, the SHA-256, and the unused entries.

    Raises:
        TokenizerError: The file cannot be read, or holds something else.
    """
    file = _find(path)
    try:
        tensors = state_dict_of(file)
    except ModelError as error:
        raise TokenizerError(str(error)) from error
    try:
        tokenizer = _build(tensors, num_heads)
    except (ModelError, TokenizerError) as error:
        raise TokenizerError(f"{file}: {error}") from error
    tokenizer.fit_report = {"source": file.name, "source_sha256": sha256(file), **tokenizer.fit_report}
    return tokenizer


def _find(path: Path | str) -> Path:
    if str(path) == HUB_NAME and not Path(path).exists():
        return download_from_hub()
    path = Path(path)
    if not path.is_dir():
        return path
    weights_file = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
    if weights_file is None:
        raise TokenizerError(
            f"The folder {path} holds none of {', '.join(_FOLDER_FILES)}. Give the file of published weights itself."
        )
    return weights_file


def _build(tensors: Mapping[str, Tensor], num_heads: int | None) -> Tokenizer:
    """The tokenizer that has tensors of these names."""
    if is_dall_e(tensors):
        return DallE.from_released(tensors)
    if {"quantize.embedding.weight", "encode_task_layer.0.weight"} <= set(tensors):
        from mapet.tokenizers.vq_kd.tokenizer import VQKD

        return VQKD.from_released(dict(tensors), num_heads=num_heads)
    first = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(tensors.items())[:_MOST_NAMED])
    more = f" and {len(tensors) - _MOST_NAMED} more" if len(tensors) > _MOST_NAMED else ""
    raise TokenizerError(
        f"It holds neither DALL-E's encoder nor a VQ-KD. Its {len(tensors)} tensors: {first}{more}. Give one of their published "
        "files; for tokens from another model's features, `mapet tokenizer fit DATA --features timm:NAME@FILE`."
    )
