"""The page of `mapet codebook`: tokenizers compared on the same images, and example patches of their codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mapet.data.decode import decode_image
from mapet.data.source import ImageSource
from mapet.data.views import FixedView
from mapet.errors import SettingsError
from mapet.report import page
from mapet.report.drawing import Picture
from mapet.report.gallery import Vocabulary, gallery, usage_figure, vocabulary_figures
from mapet.report.survival import survival_figure
from mapet.runtime.files import atomic_directory, write_json, write_text
from mapet.runtime.run_directory import describe_environment
from mapet.tokenizers.scoring.perturbations import PERTURBATIONS
from mapet.tokenizers.scoring.score import ScoredTokenizer
from mapet.tokenizers.scoring.scorecard import Judged, Scorecard

PAGE, FIGURES, CARD = "codebook.html", "codebook-figures", "scorecard.json"
FORMAT = 1
_AnyJudged = TypeVar("_AnyJudged", bound=Judged)


@dataclass(frozen=True)
class CodeSelection:
    """Which codes the gallery shows; with none of them given, the most used ones and some others.

    Args:
        codes: These.
        random: So many, drawn by the seed.
        most_used: So many.
    """

    codes: tuple[int, ...] = ()
    random: int | None = None
    most_used: int | None = None

    def check(self, vocab_size: int, title: str) -> None:
        """Refuses codes that a tokenizer does not have."""
        if unknown := [code for code in self.codes if not 0 <= code < vocab_size]:
            raise SettingsError(f"There is no code {unknown[0]} in {title}; allowed: 0 to {vocab_size - 1}.")

    def figures(self, vocabulary: Vocabulary) -> list[Picture]:
        """The galleries, and the usage of all codes."""
        if not self.codes and self.random is None and self.most_used is None:
            return vocabulary_figures(vocabulary)
        drawn = []
        if self.codes:
            drawn.append(gallery(vocabulary, self.codes, "chosen", "Chosen codes"))
        if self.most_used is not None:
            codes = vocabulary.most_used(self.most_used)
            drawn.append(gallery(vocabulary, codes, "most-used", f"The {len(codes)} most used codes"))
        if self.random is not None:
            codes = vocabulary.random(self.random)
            drawn.append(gallery(vocabulary, codes, "random", f"{len(codes)} random codes"))
        return [*drawn, usage_figure(vocabulary)]


def write_scorecards(
    scored: Sequence[ScoredTokenizer], source: ImageSource, out: Path, *, selection: CodeSelection, seed: int
) -> Path:
    """Writes codebook.html, self-contained, its figures as PNG files beside it, and scorecard.json.

    Args:
        scored: Tokenizers scored on the same images, in any order.
        source: These images.
        out: A folder, new or with an older page.
        selection: Which codes the galleries show.
        seed: Of random codes, and of the images that patches are taken from.

    Returns:
        The path of the page.

    Raises:
        SettingsError: `selection` names a code that a tokenizer does not have.
        StorageError: The folder cannot be written.
    """
    ranked = rank(scored)
    for entry in ranked:
        selection.check(entry.card.vocab_size, entry.title)
    environment = describe_environment()
    comparison = [survival_figure(ranked)]
    galleries = [selection.figures(vocabulary_of(entry, source, seed)) for entry in ranked]
    content = _page(ranked, source, environment, comparison, galleries)
    with atomic_directory(out / FIGURES) as partial:
        for picture in chain(comparison, *galleries):
            (partial / f"{picture.name}.png").write_bytes(picture.png)
    write_json(out / CARD, _as_json(ranked, source, seed, environment))
    write_text(out / PAGE, content)
    return out / PAGE


def rank(scored: Iterable[_AnyJudged]) -> list[_AnyJudged]:
    """The tokenizer whose tokens keep most information comes first."""
    return sorted(scored, key=lambda entry: (-entry.card.information, entry.title))


def table_rows(ranked: Sequence[Judged]) -> list[list[str]]:
    """What is measured, and its value for every tokenizer; what applies to none is left out."""
    columns = [_facts(entry.card) for entry in ranked]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "–") for column in columns)] for name in names]


def _facts(card: Scorecard) -> dict[str, str]:
    """Short, so that several columns fit on a terminal; `MEANINGS` gives the rest."""
    unused = f"{card.dead_by_chance:.2g}" if card.dead_by_chance >= 0.05 else "0"
    facts = {
        "Information that survives": _bits(card.information),
        "Entropy of a token": _bits(card.entropy),
        "Perplexity": f"{card.perplexity:,.0f} ({_percent(card.perplexity / card.vocab_size)})",
        "Codes used": f"{card.used:,} of {card.vocab_size:,}",
        "Codes unused": f"{card.dead:,} (chance: {unused})",
        "Most used code": _percent(card.largest_share),
        "Tokens an image": f"{card.grid_size[0]} x {card.grid_size[1]}",
        "Entropy of an image": f"{_bits(card.image_entropy)} ± {card.image_entropy_deviation:.2f}",
    }
    if card.neighbours_agree is not None:
        facts["Neighbours agree"] = f"{_percent(card.neighbours_agree)} (chance: {_percent(card.neighbours_by_chance)})"
    for change in PERTURBATIONS:
        if survival := card.survival.get(change.name):
            facts[f"Same after {change.title}"] = f"{_percent(survival.same)}, {_bits(survival.information)}"
    if card.labels is not None:
        facts["About the class"] = _bits(card.labels.information)
        facts["Bag of tokens"] = f"{_percent(card.labels.accuracy)} (chance: {_percent(card.labels.by_chance)})"
    if card.centroids is not None:
        facts["Distance to own centroid"] = f"{card.centroids.own_distance:.2f}"
        facts["Nearer than to the next"] = _percent(card.centroids.margin)
        facts["Codes far from every patch"] = f"{card.centroids.far_codes:,}"
    return facts


def _bits(value: float) -> str:
    return f"{abs(value) if abs(value) < 0.005 else value:.2f} bits"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def vocabulary_of(entry: ScoredTokenizer, source: ImageSource, seed: int) -> Vocabulary:
    """What the galleries of a tokenizer are drawn from: the images of `source` that it was scored on."""
    view = FixedView(entry.tokenizer.image_size, entry.tokenizer.interpolation)

    @lru_cache(maxsize=64)
    def image(index: int) -> np.ndarray:
        return view(decode_image(source.read(int(entry.indices[index])))).permute(1, 2, 0).numpy()

    counted = f"{entry.card.tokens:,} tokens of {entry.card.images:,} images"
    return Vocabulary(entry.title, entry.ids, image, entry.usage, seed, "images drawn by the seed", counted)


def _as_json(ranked: Sequence[ScoredTokenizer], source: ImageSource, seed: int, environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "data": source.location,
        "seed": seed,
        "environment": environment,
        "tokenizers": [
            {
                "rank": place,
                "title": entry.title,
                "kind": entry.tokenizer.kind,
                "fingerprint": entry.tokenizer.fingerprint,
                **asdict(entry.card),
            }
            for place, entry in enumerate(ranked, 1)
        ],
    }


def _page(
    ranked: Sequence[ScoredTokenizer],
    source: ImageSource,
    environment: dict[str, Any],
    comparison: list[Picture],
    galleries: list[list[Picture]],
) -> str:
    several = len(ranked) > 1
    title = f"{f'{len(ranked)} tokenizers' if several else ranked[0].title} on {Path(source.location).name or source.location}"
    sections = [
        page.heading(title, 1),
        page.text(_summary(ranked), "verdict"),
        page.table(["", *(entry.title for entry in ranked)], table_rows(ranked)),
        page.section("What survives", page.figures(comparison)),
        *(page.section(f"The codes of {entry.title}", page.figures(drawn)) for entry, drawn in zip(ranked, galleries, strict=True)),
        page.section("How to read it", page.table(["", "meaning"], MEANINGS)),
        page.section("Environment", page.table(["", "value"], environment_rows(environment))),
    ]
    return page.page(title, sections)


def _summary(ranked: Sequence[ScoredTokenizer]) -> str:
    first = ranked[0].card
    clauses = [f"{entry.card.information:.2f} of {entry.card.entropy:.2f} bits in {entry.title}" for entry in ranked]
    return (
        f"On {first.images:,} images, of the information in a token this survives flips, recolouring, small shifts and noise: "
        f"{', '.join(clauses)}."
    )


def environment_rows(environment: dict[str, Any]) -> list[list[str]]:
    """What a page was made by, with and on: rows of a table."""
    gpus = ", ".join(environment["gpus"])
    return [
        ["Command", str(environment["command"])],
        ["Commit", str(environment["commit"] or "unknown")],
        ["Hardware", f"{environment['processor']}, {environment['cores']} cores{f', {gpus}' if gpus else ''}"],
        ["Versions", ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)],
    ]


# Of the rows of a scorecard.
MEANINGS = [
    [
        "Information that survives",
        "Mutual information between the token of a patch and the token of the same patch after the image was changed: "
        "the mean over flip, colour jitter, shift by 1/8 patch and noise. What pairs of different images share by chance is taken "
        "off. 0 for a codebook that has collapsed to one code, and for codes drawn at random. It ranks the tokenizers.",
    ],
    ["Perplexity", "Codes that would have the same entropy if all were used equally; and their share of the vocabulary."],
    ["Codes unused", "Among these tokens. Chance: if every token drew its code, each being equally likely."],
    ["Entropy of an image", "Of the tokens of one image; mean and standard deviation over the images."],
    ["Neighbours agree", "Horizontal and vertical neighbours with the same token. Chance: tokens drawn as often as they occur."],
    [
        "Same after ...",
        "Share of patches whose token stays the same, and the information that survives. At a shift by 1 patch the grid moves "
        "along and no patch changes, so that even a hash of its pixels survives: it is not ranked.",
    ],
    ["About the class", "Mutual information between one token and the class of its image, corrected for chance."],
    [
        "Bag of tokens",
        "Accuracy of naive Bayes on the counts of an image's tokens, fitted on half of the images, tested on the "
        "others. Chance: always the class that is most frequent in the first half.",
    ],
    ["Distance to own centroid", "Mean distance of a patch to its centroid, over the mean distance between two centroids."],
    ["Nearer than to the next", "By how much the own centroid is nearer than the second nearest: 0 % lies between two codes."],
    ["Codes far from every patch", "Even the nearest patch is farther away than patches are from their own centroid on average."],
]
