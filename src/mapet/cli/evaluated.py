"""What `mapet evaluate` opens at an address: a backbone, unless the protocol evaluates something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapet.evaluation.protocol import Opened

BACKBONE = "backbone"
_OTHERS = {"tokens": "tokenizer", "classify": "classifier"}


def kind_of(titles: Sequence[str]) -> str:
    """What the protocols evaluate: "backbone", or another word; several kinds in one command are a SettingsError."""
    from mapet.errors import SettingsError

    kinds = [_OTHERS.get(title.partition(":")[0], BACKBONE) for title in titles]
    special = next((index for index, kind in enumerate(kinds) if kind != BACKBONE), 0)
    other = next((index for index, kind in enumerate(kinds) if kind != kinds[special]), None)
    if other is not None:
        name = titles[special].partition(":")[0]
        raise SettingsError(
            f"'{name}' judges a {kinds[special]} and '{titles[other]}' a {kinds[other]}. Give them in commands of their own."
        )
    return kinds[special]


def open_evaluated(kind: str, address: str, data: str | None, *, model: str | None, options: Mapping[str, Any]) -> Opened:
    """Opens what is at `address`.

    Args:
        kind: As `kind_of` gives it.
        address: Of the backbone or another thing.
        data: Labelled images, which only a run can do without.
        model: timm's name of the model in a file.
        options: Of the model, for timm.

    Raises:
        MapetError: There is none, or there are no images.
    """
    from mapet.checkpoints.address import open_backbone
    from mapet.errors import SettingsError

    if kind == BACKBONE:
        return open_backbone(address, model=model, options=options)
    if kind == "classifier":
        from mapet.evaluation.classify.classifier import ModelChoice, load_classifier

        return load_classifier(address, ModelChoice(model, options=options))
    from mapet.evaluation.tokens.data import open_tokens, run_at

    if data is None and run_at(Path(address)) is None:
        raise SettingsError(f"{address} has no images of its own. Give labelled ones: mapet evaluate tokens {address} DATA")
    return open_tokens(address)
