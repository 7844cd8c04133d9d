"""What the tokenizers of a comparison are worth, and what their codes look like."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import mapet
from mapet.compare.manifest import Manifest
from mapet.compare.score_cache import CachedScore, cached_score
from mapet.config.settings import PretrainSettings
from mapet.data.source import ImageSource
from mapet.data.sources import open_source
from mapet.errors import InUseError, MapetError
from mapet.report import page
from mapet.report.drawing import Picture
from mapet.report.gallery import vocabulary_figures
from mapet.report.scorecard import MEANINGS, rank, table_rows, vocabulary_of
from mapet.report.survival import survival_figure
from mapet.runtime.device import choose_device
from mapet.runtime.progress import progress
from mapet.token_store.keys import image_keys
from mapet.tokenizers.load import fingerprint_of, load_tokenizer
from mapet.tokenizers.place import is_saved
from mapet.tokenizers.scoring.score import draw_images, score_tokenizer

_IMAGES = 500  # that the tokenizers are scored on


def tokenizer_pages(manifest: Manifest) -> tuple[str, list[Picture]]:
    """Scorecards side by side, and the galleries of all tokenizers; "" where there is none.

    Returns:
        The content of a section, and its pictures.
    """
    tokenizers = _tokenizers(manifest)
    if not tokenizers:
        return "", []
    try:
        scored, left_out = _scored(manifest, tokenizers)
    except MapetError as error:
        return page.left_out(error), []
    if not scored:
        return "".join(left_out), []
    ranked = rank(scored)
    survival = survival_figure(ranked)
    content = [
        page.text(f"Scored on {ranked[0].card.images:,} images of the comparison; the best tokenizer comes first."),
        *left_out,
        page.table(["", *(entry.title for entry in ranked)], table_rows(ranked)),
        page.figures([survival]),
    ]
    for entry in ranked:
        content += [page.heading(f"The codes of {entry.title}", 3), page.figures(entry.pictures)]
    content += [page.heading("How to read a scorecard", 3), page.table(["", "meaning"], MEANINGS)]
    return "".join(content), [survival, *(picture for entry in ranked for picture in entry.pictures)]


def _tokenizers(manifest: Manifest) -> dict[str, Path | str]:
    """Title to place of the tokenizers that were fitted for the comparison, and of those that it was given."""
    folders = [folder for folder in sorted((manifest.out / "tokens").glob("*/tokenizer")) if folder.is_dir()]
    names = [folder.parent.name.rpartition("-")[0] for folder in folders]
    titles = [name if names.count(name) == 1 else folder.parent.name for folder, name in zip(folders, names, strict=True)]
    saved = {Path(name).name: name for name in manifest.grid.tokenizers if is_saved(name)}
    return {**dict(zip(titles, folders, strict=True)), **saved}


def _scored(manifest: Manifest, tokenizers: dict[str, Path | str]) -> tuple[list[CachedScore], list[str]]:
    """The scores, kept or made now, and a sentence for every tokenizer that has none."""
    settings = manifest.settings((manifest.grid.cells or manifest.grid.token_cells)[0], 0)
    source = draw_images(open_source(manifest.data, "train"), _IMAGES, settings.seed)
    images = hashlib.sha256("\n".join(image_keys(source)).encode()).hexdigest()
    scored, left_out = [], []
    for title, place in tokenizers.items():
        try:
            facts = {"mapet": mapet.__version__, "tokenizer": fingerprint_of(place), "images": images, "seed": settings.seed}
            make = partial(_score, title, place, source, settings)
            scored.append(cached_score(manifest.out / "tokens" / "scorecards", title, facts, make))
        except InUseError:
            left_out.append(page.left_out(f"{title}, which another job scores now. The next page holds it."))
        except MapetError as error:
            left_out.append(page.left_out(f"{title}: {error}"))
    return scored, left_out


def _score(title: str, place: Path | str, source: ImageSource, settings: PretrainSettings) -> CachedScore:
    device, workers = choose_device(settings.mechanics.device), settings.mechanics.workers
    scored = score_tokenizer(load_tokenizer(place), source, title=title, device=device, workers=workers)
    with progress(f"Drawing the codes of {title}", 1, after=2.0):
        return CachedScore(title, scored.card, vocabulary_figures(vocabulary_of(scored, source, settings.seed)))
