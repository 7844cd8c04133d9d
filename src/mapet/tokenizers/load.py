"""A tokenizer from whatever a user names: a folder, a published weights file, or a name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from mapet.errors import SettingsError, TokenizerError, nearest
from mapet.runtime.files import recover
from mapet.tokenizers.base import DESCRIPTION_FILE, FORMAT, TOKENIZERS, WEIGHTS_FILE, Tokenizer

# What makes a tokenizer of each name; {folder} is where the name is looked for.
_MAKE = {
    "k-clip": "mapet tokenizer fit IMAGENET --preset k-clip --out {folder}",
    "vq-kd": "mapet tokenizer convert vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth --out {folder}",
    "dall-e": "mapet tokenizer convert facebook/flava-image-codebook --out {folder}",
}


def load_tokenizer(tokenizer: Path | str) -> Tokenizer:
    """The tokenizer that a user names, in evaluation mode on the CPU.

    Args:
        tokenizer: A folder made by `mapet tokenizer`; a published weights file of VQ-KD or DALL-E; or one of the names "k-clip",
            "vq-kd", "dall-e": the folder of that name here or, if there is none, in `named_folder`.

    Raises:
        TokenizerError: There is none, it is damaged or incomplete, or it was written by another version.
    """
    path = recover(tokenizer)
    if path.is_file():
        from mapet.tokenizers.released import tokenizer_from_file

        return tokenizer_from_file(path)
    name = str(tokenizer)
    if name in _MAKE and not path.exists():
        path = recover(named_folder(name))
        if not path.is_dir():
            raise TokenizerError(
                f"There is no tokenizer '{name}' on this machine: neither a folder of that name here nor {path}. To make it: "
                f"{_MAKE[name].format(folder=path)}"
            )
    return _load_folder(path)


def named_folder(name: str) -> Path:
    """Where a tokenizer is found by its name from anywhere: below MAPET_HOME, by default ~/.cache/mapet."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("MAPET_HOME") or f"{cache}/mapet"
    return Path(home).expanduser() / "tokenizers" / name


def _load_folder(path: Path) -> Tokenizer:
    """The tokenizer saved in the folder `path`, checked against its fingerprint."""
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
        raise TokenizerError(
            f"There is no tokenizer at {path}. Give a folder made by `mapet tokenizer fit DATA --out FOLDER`, a published weights "
            f"file, or a name. {nearest(path.name, _MAKE)}"
        )
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
