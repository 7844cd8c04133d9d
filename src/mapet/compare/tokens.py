"""The tokens that several runs share: a tokenizer and a token store for every way to make them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from mapet.compare.grid import Cell
from mapet.compare.manifest import Manifest
from mapet.config.settings import PretrainSettings
from mapet.data.regions import regions_of
from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.errors import InUseError
from mapet.models.backbone import grid_size
from mapet.pretraining.pretrain import backbone_spec, fit_settings
from mapet.runtime.device import choose_device
from mapet.runtime.files import recover
from mapet.runtime.lock import only_writer
from mapet.runtime.progress import say
from mapet.token_store.build import build_store
from mapet.tokenizers.fit import fit_tokenizer
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.place import is_saved

_SECONDS_BETWEEN_TRIES = 5.0


def tokens_of(manifest: Manifest, cell: Cell) -> Path | None:
    """The tokens of a cell, made once for all its runs; None where the objective needs none, or makes them as it goes."""
    if "tokens" not in cell.needs or manifest.settings(cell, 0).view.name == "online":
        return None
    return _made_once(manifest, cell, make_tokens)


def tokenizer_of(manifest: Manifest, cell: Cell) -> Path | str:
    """The tokenizer of a cell, fitted once; one that was saved as it was given."""
    if is_saved(cell.tokenizer or ""):
        return cell.tokenizer or ""
    return _made_once(manifest, cell, make_tokenizer)


def existing_tokenizer(manifest: Manifest, cell: Cell) -> Path | str | None:
    """The tokenizer of a cell; None before it was fitted."""
    tokenizer = cell.tokenizer or ""
    if is_saved(tokenizer):
        return tokenizer
    path = recover(_tokenizer_folder(manifest.settings(cell, 0), manifest.out / "tokens", tokenizer))
    return path if path.is_dir() else None


def _made_once(manifest: Manifest, cell: Cell, make: Callable[[str, PretrainSettings, Path, str], Path]) -> Path:
    """What `make` makes, or another job before it, for which this one waits."""
    waiting = False
    while True:
        try:
            return make(manifest.data, manifest.settings(cell, 0), manifest.out / "tokens", cell.tokenizer or "")
        except InUseError as error:
            if not waiting:
                say(f"Waiting for the tokens that another job makes: {error}")
            waiting = True
            time.sleep(_SECONDS_BETWEEN_TRIES)


def make_tokens(data: str, settings: PretrainSettings, folder: Path, tokenizer: str = "") -> Path:
    """Fits a tokenizer and tokenises the training images of `data`, unless both were done before.

    Args:
        data: The images.
        settings: Of a run that uses the tokens.
        folder: Each way to make tokens has a folder of its own in it.
        tokenizer: Of a saved tokenizer, its path; of one to fit, its features, or "".

    Returns:
        The token store.

    Raises:
        InUseError: Another process makes them.
        MapetError: The images, the tokenizer or the settings do not fit together.
    """
    saved = tokenizer if is_saved(tokenizer) else None
    fitted = None if saved else make_tokenizer(data, settings, folder, tokenizer)
    store_folder, mechanics = folder / _name(settings, tokenizer, saved), settings.mechanics
    device, unreadable = choose_device(mechanics.device), UnreadableImages(mechanics.max_unreadable)
    with only_writer(store_folder):
        source = open_source(data, "train")
        build_store(
            source,
            load_tokenizer(saved or fitted or ""),
            store_folder / "tokens",
            regions=regions_of(settings.view, settings.seed),
            workers=mechanics.workers,
            device=device,
            unreadable=unreadable,
        )
    return store_folder / "tokens"


def make_tokenizer(data: str, settings: PretrainSettings, folder: Path, tokenizer: str = "") -> Path:
    """Fits a tokenizer on the training images of `data`, unless that was done before; the arguments of `make_tokens`."""
    out, mechanics = _tokenizer_folder(settings, folder, tokenizer), settings.mechanics
    with only_writer(out.parent):
        if not recover(out).is_dir():
            fit_tokenizer(
                open_source(data, "train"),
                fit_settings(settings, backbone_spec(settings).build()),
                out=out,
                memory=int(mechanics.memory * 2**30),
                device=choose_device(mechanics.device),
                workers=mechanics.workers,
                unreadable=UnreadableImages(mechanics.max_unreadable),
            )
    return out


def _tokenizer_folder(settings: PretrainSettings, folder: Path, tokenizer: str) -> Path:
    return folder / _name(settings, tokenizer, None) / "tokenizer"


def _name(settings: PretrainSettings, tokenizer: str, saved: str | None) -> str:
    """Readable, and with a hash of everything that the tokens depend on besides the images."""
    science = settings.science
    facts = [saved and str(Path(saved).resolve()), science["view"], settings.image_size]
    facts += [] if saved else [science["tokenizer"], list(grid_size(backbone_spec(settings).build()))]
    digits = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:6]
    return f"{Path(tokenizer or settings.tokenizer.features).name}-{digits}"
