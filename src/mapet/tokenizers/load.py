"""A tokenizer from whatever a user names: a folder, a published weights file, or a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mapet.errors import NotAllowedError, TokenizerError, UsageError, in_one_line
from mapet.runtime.device import without_memory
from mapet.runtime.files import recover
from mapet.runtime.json_files import read_json
from mapet.runtime.regular import open_regular
from mapet.runtime.tensors import load_tensors, open_tensors
from mapet.tokenizers.base import DESCRIPTION_FILE, FORMAT, TOKENIZERS, WEIGHTS_FILE, Tokenizer
from mapet.tokenizers.place import folder_of, require_place


def load_tokenizer(tokenizer: Path | str) -> Tokenizer:
    """The tokenizer that a user names, in evaluation mode on the CPU.

    Args:
        tokenizer: A folder made by `mapet tokenizer`; a published weights file of VQ-KD or DALL-E; or one of the names "k-clip",
            "vq-kd", "dall-e": the folder of that name here or, if there is none, in `named_folder`.

    Raises:
        TokenizerError: There is none, it is damaged or incomplete, or it was written by another version.
        NotAllowedError: It is of a class that is not part of mapet and that the user did not type (`mapet.allow`).
    """
    path = recover(tokenizer)
    if path.is_file():
        from mapet.tokenizers.released import tokenizer_from_file

        return tokenizer_from_file(path)
    return _load_folder(folder_of(tokenizer))


def fingerprint_of(tokenizer: Path | str) -> str:
    """The fingerprint of the tokenizer that a user names, as its folder records it; computed where there is only a weights file.

    Raises:
        TokenizerError: As `load_tokenizer` raises it, as far as that shows without the weights.
    """
    if recover(tokenizer).is_file():
        return load_tokenizer(tokenizer).fingerprint
    return str(_read_description(folder_of(tokenizer)).get("fingerprint"))


def _load_folder(path: Path) -> Tokenizer:
    """The tokenizer saved in the folder `path`, checked against its fingerprint."""
    description = _read_description(path)
    try:
        kind = TOKENIZERS.get(description["kind"])
        if (path / WEIGHTS_FILE).exists():
            open_regular(path / WEIGHTS_FILE).close()
        if kind.kind in TOKENIZERS and kind.has_weights:
            _compare_shapes(kind, description["settings"], path / WEIGHTS_FILE)
        tokenizer = kind.from_settings(description["settings"])
        if tokenizer.state_dict():
            tokenizer.load_state_dict(load_tensors(path / WEIGHTS_FILE))
    except NotAllowedError as error:
        raise NotAllowedError(f"The tokenizer at {path}: {error}") from None
    except _DAMAGE as error:
        raise TokenizerError(
            f"The tokenizer at {path} is damaged or incomplete: {in_one_line(error)}. Fit or copy it again."
        ) from error
    report = description.get("fit_report")
    tokenizer.fit_report = report if isinstance(report, dict) else {}
    tokenizer.eval().requires_grad_(False)
    if tokenizer.fingerprint != description.get("fingerprint"):
        raise TokenizerError(
            f"The tokenizer at {path} is not the one that was saved: its fingerprint is {tokenizer.fingerprint[:12]}, "
            f"tokenizer.json says {str(description.get('fingerprint'))[:12]}. Its files were changed, "
            "or this version computes other tokens. Fit it again."
        )
    return tokenizer


# What building from settings and weights that do not belong together ends in.
_DAMAGE = (UsageError, LookupError, TypeError, AttributeError, ArithmeticError, ValueError, RuntimeError, OSError, SafetensorError)


def _compare_shapes(kind: type[Tokenizer], settings: Any, weights: Path) -> None:
    """Refuses settings whose tensors differ from those of the file, before memory is allocated for them."""
    with without_memory():
        expected = {name: tuple(value.shape) for name, value in kind.from_settings(settings).state_dict().items()}
    with open_tensors(weights) as file:
        actual = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if expected != actual:
        name = next(name for name in [*expected, *actual] if expected.get(name) != actual.get(name))
        raise TokenizerError(
            f"{name} is {actual.get(name, 'not')} in {weights.name}, and {expected.get(name, 'not')} in the settings"
        )


def _read_description(path: Path) -> dict[str, Any]:
    """The content of tokenizer.json, checked as far as possible without its weights."""
    require_place(path)
    file = path / DESCRIPTION_FILE
    if not file.is_file():
        raise TokenizerError(
            f"{path} is not a tokenizer: it holds no {DESCRIPTION_FILE}. Give a folder made by `mapet tokenizer fit`."
        )
    description = read_json(file, dict, TokenizerError)
    if description.get("format") != FORMAT:
        raise TokenizerError(
            f"{file} has format {description.get('format')!r:.40}; this version of mapet reads format {FORMAT}. Fit the tokenizer "
            "again."
        )
    return description
