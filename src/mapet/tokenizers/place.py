"""Where the tokenizer is that a user names; without torch, so that a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from mapet.errors import TokenizerError, nearest
from mapet.runtime.files import home_folder, recover

# What makes a tokenizer of each name; {folder} is the place of the name.
_MAKE = {
    "k-clip": "mapet tokenizer fit IMAGENET --preset k-clip --out {folder}",
    "vq-kd": "mapet tokenizer convert vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth --out {folder}",
    "dall-e": "mapet tokenizer convert facebook/flava-image-codebook --out {folder}",
}


def folder_of(tokenizer: Path | str) -> Path:
    """The folder that a path or one of the names stands for; it need not exist where it is a path.

    Raises:
        TokenizerError: It is a name, and its tokenizer was not made on this machine.
    """
    path, name = recover(tokenizer), str(tokenizer)
    if name in _MAKE and not path.exists():
        path = recover(named_folder(name))
        if not path.is_dir():
            raise TokenizerError(
                f"There is no tokenizer '{name}' on this machine: neither a folder of that name here nor {path}. To make it: "
                f"{_MAKE[name].format(folder=path)}"
            )
    return path


def is_saved(tokenizer: str) -> bool:
    """Whether `tokenizer` names one that `load_tokenizer` is meant to find: a path that exists, or "k-clip", "vq-kd", "dall-e"."""
    return tokenizer in _MAKE or (bool(tokenizer) and recover(tokenizer).exists())


def named_folder(name: str) -> Path:
    """Where a tokenizer is found by its name from anywhere: below MAPET_HOME, by default ~/.cache/mapet."""
    return home_folder() / "tokenizers" / name


def require_place(tokenizer: Path | str) -> None:
    """Refuses a path at which there is nothing, and a name whose tokenizer was not made.

    Raises:
        TokenizerError: There is nothing; the message has the way to make one.
    """
    path = folder_of(tokenizer)
    if not path.exists():
        raise TokenizerError(
            f"There is no tokenizer at {path}. Give a folder made by `mapet tokenizer fit DATA --out FOLDER`, a published weights "
            f"file, or a name. {nearest(path.name, _MAKE)}"
        )
