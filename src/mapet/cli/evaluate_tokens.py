"""`mapet evaluate tokens`: what a tokenizer is worth, when its tokens are all that is seen of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapet.evaluation.tokens.protocol import TokenClassification

NAME = "tokens"


def is_about_tokens(titles: Sequence[str]) -> bool:
    """Whether token classification is asked for, whose subject is a tokenizer; with other protocols beside it, a SettingsError."""
    from mapet.errors import SettingsError

    about = [title.partition(":")[0] == NAME for title in titles]
    if any(about) and not all(about):
        other = titles[about.index(False)]
        raise SettingsError(f"'{NAME}' judges a tokenizer and '{other}' a backbone. Give them in commands of their own.")
    return all(about)


def evaluate_tokenizer(titles: Sequence[str], address: str, data: str | None, settings: Mapping[str, Any], **work: Any) -> None:
    """Judges the tokenizer, the store or the run's tokenizer at `address` and prints the figures.

    Args:
        titles: Protocols, such as "tokens:mlp".
        address: A tokenizer, a token store or a run directory.
        data: Labelled images; by default those of the run.
        settings: Of `--set`.
        work: Further arguments of `evaluate_tokens`.
    """
    from mapet.evaluation.presets import protocols_of
    from mapet.evaluation.tokens.data import open_tokens
    from mapet.evaluation.tokens.protocol import evaluate_tokens, token_line

    chosen: list[TokenClassification] = protocols_of(titles, settings)  # type: ignore[assignment]
    location, folder = _location(address, data, work.pop("folder", None))
    tokens = open_tokens(address)
    results = evaluate_tokens(tokens, location, chosen, folder=folder, **work)
    first, (rows, columns) = results[0], tokens.grid_size
    print(f"{first.data}: {first.train_images} training and {first.test_images} test images, {first.classes} classes")
    print(f"{tokens.title}: {tokens.vocab_size:,} codes, {rows} x {columns} tokens an image")
    for result in results:
        print(token_line(result))


def _location(address: str, data: str | None, folder: Any) -> tuple[str, Any]:
    """Where the images are, and where results are kept: a run has both."""
    from pathlib import Path

    from mapet.data.sources import recorded_location
    from mapet.errors import SettingsError
    from mapet.evaluation.tokens.data import run_at

    run = run_at(Path(address))
    if run is not None:
        return data or recorded_location(run.read_config().get("data"), run.config), folder or run.evaluations
    if data is None:
        raise SettingsError(f"{address} has no images of its own. Give labelled ones: mapet evaluate {NAME} {address} DATA")
    return data, folder
