"""What the tokenizers of a comparison are worth, and what their codes look like."""

from __future__ import annotations

from pathlib import Path

from mapet.compare.manifest import Manifest
from mapet.data.sources import open_source
from mapet.errors import MapetError
from mapet.report import page
from mapet.report.drawing import Picture
from mapet.report.gallery import vocabulary_figures
from mapet.report.scorecard import MEANINGS, rank, table_rows, vocabulary_of
from mapet.report.survival import survival_figure
from mapet.runtime.device import choose_device
from mapet.tokenizers.load import is_saved, load_tokenizer
from mapet.tokenizers.scoring.score import ScoredTokenizer, draw_images, score_tokenizer

_IMAGES = 500  # that the tokenizers are scored on


def tokenizer_pages(manifest: Manifest) -> tuple[str, list[Picture]]:
    """Scorecards side by side, and the galleries of all tokenizers; "" where there is none.

    Returns:
        The content of a section, and its pictures.
    """
    found = _tokenizers(manifest)
    if not found:
        return "", []
    try:
        scored, galleries = _scored(manifest, found)
    except MapetError as error:
        return page.left_out(error), []
    ranked = rank(scored)
    survival = survival_figure(ranked)
    content = [
        page.text(f"Scored on {ranked[0].card.images:,} images of the comparison; the best tokenizer comes first."),
        page.table(["", *(entry.title for entry in ranked)], table_rows(ranked)),
        page.figures([survival]),
    ]
    for entry in ranked:
        content += [page.heading(f"The codes of {entry.title}", 3), page.figures(galleries[entry.title])]
    content += [page.heading("How to read a scorecard", 3), page.table(["", "meaning"], MEANINGS)]
    return "".join(content), [survival, *(picture for entry in ranked for picture in galleries[entry.title])]


def _tokenizers(manifest: Manifest) -> dict[str, Path | str]:
    """Title to place of the tokenizers that were fitted for the comparison, and of those that it was given."""
    made = [folder for folder in sorted((manifest.out / "tokens").glob("*/tokenizer")) if folder.is_dir()]
    names = [folder.parent.name.rpartition("-")[0] for folder in made]
    titles = [name if names.count(name) == 1 else folder.parent.name for folder, name in zip(made, names, strict=True)]
    given = {Path(name).name: name for name in manifest.grid.tokenizers if is_saved(name)}
    return {**dict(zip(titles, made, strict=True)), **given}


def _scored(manifest: Manifest, found: dict[str, Path | str]) -> tuple[list[ScoredTokenizer], dict[str, list[Picture]]]:
    settings = manifest.settings((manifest.grid.cells or manifest.grid.token_cells)[0], 0)
    source = draw_images(open_source(manifest.data, "train"), _IMAGES, settings.seed)
    device, workers = choose_device(settings.mechanics.device), settings.mechanics.workers
    scored = [
        score_tokenizer(load_tokenizer(place), source, title=title, device=device, workers=workers)
        for title, place in found.items()
    ]
    return scored, {entry.title: vocabulary_figures(vocabulary_of(entry, source, settings.seed)) for entry in scored}
