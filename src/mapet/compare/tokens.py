"""The tokens that several runs share: a tokenizer and a token store for every way to make them."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from mapet.compare.grid import Cell
from mapet.compare.manifest import Manifest
from mapet.config.settings import PretrainSettings
from mapet.data.regions import regions_of
from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.errors import InUseError
from mapet.models.backbone import grid_size
from mapet.objectives import OBJECTIVES
from mapet.pretraining.pretrain import backbone_spec, fit_settings
from mapet.runtime.device import choose_device
from mapet.runtime.files import recover
from mapet.runtime.lock import only_writer
from mapet.runtime.progress import say
from mapet.token_store.build import build_store
from mapet.tokenizers.fit import fit_tokenizer
from mapet.tokenizers.load import is_saved, load_tokenizer

_SECONDS_BETWEEN_TRIES = 5.0


def tokens_of(manifest: Manifest, cell: Cell) -> Path | None:
    """The tokens of a cell, made once for all its runs; None where the objective needs none, or makes them as it goes.

    Waits for another job that makes them.
    """
    settings, waiting = manifest.settings(cell, 0), False
    if "tokens" not in OBJECTIVES.get(cell.objective).needs or settings.view.name == "online":
        return None
    while True:
        try:
            return make_tokens(manifest.data, settings, manifest.out / "tokens", cell.tokenizer or "")
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
    own = folder / _name(settings, tokenizer, saved)
    backbone, mechanics = backbone_spec(settings).build(), settings.mechanics
    device, unreadable = choose_device(mechanics.device), UnreadableImages(mechanics.max_unreadable)
    with only_writer(own):
        source = open_source(data, "train")
        if saved is None and not recover(own / "tokenizer").is_dir():
            fit_tokenizer(
                source,
                fit_settings(settings, backbone),
                out=own / "tokenizer",
                memory=int(mechanics.memory * 2**30),
                device=device,
                workers=mechanics.workers,
                unreadable=unreadable,
            )
        build_store(
            source,
            load_tokenizer(saved or own / "tokenizer"),
            own / "tokens",
            regions=regions_of(settings.view, settings.seed),
            workers=mechanics.workers,
            device=device,
            unreadable=unreadable,
        )
    return own / "tokens"


def _name(settings: PretrainSettings, tokenizer: str, saved: str | None) -> str:
    """Readable, and with a hash of everything that the tokens depend on besides the images."""
    science = settings.science
    facts = [saved and str(Path(saved).resolve()), science["view"], settings.image_size]
    facts += [] if saved else [science["tokenizer"], list(grid_size(backbone_spec(settings).build()))]
    digits = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:6]
    return f"{Path(tokenizer or settings.tokenizer.features).name}-{digits}"
