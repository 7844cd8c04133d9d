"""What `mapet evaluate` opens at an address: a backbone, unless the protocol evaluates something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mapet.evaluation.protocol import Evaluable

BACKBONE, TOKENIZER, CLASSIFIER = "backbone", "tokenizer", "classifier"
_OTHERS = {"tokens": TOKENIZER, "classify": CLASSIFIER}


def kind_of(titles: Sequence[str]) -> str:
    """What the protocols evaluate: "backbone", or another word; several kinds in one command are a SettingsError."""
    from mapet.errors import SettingsError

    kinds = [_OTHERS.get(title.partition(":")[0], BACKBONE) for title in titles]
    special = next((index for index, kind in enumerate(kinds) if kind != BACKBONE), 0)
    other = next((index for index, kind in enumerate(kinds) if kind != kinds[special]), None)
    if other is not None:
        name = titles[special].partition(":")[0]
        raise SettingsError(f"'{name}' evaluates a {kinds[special]} and '{titles[other]}' a {kinds[other]}. Use separate commands.")
    return kinds[special]


def load_target(
    kind: str,
    address: str,
    data: str | None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    class_map: Path | None = None,
    use_ema: bool = False,
) -> Evaluable:
    """Opens what is at `address`.

    Args:
        kind: As `kind_of` gives it.
        address: Of the backbone or another thing.
        data: Labelled images, which only a run can do without.
        model: timm's name of the model in a file.
        options: Of the model, for timm.
        class_map: Of a classifier: names of its outputs.
        use_ema: Of a classifier: whether the moving average of its weights is taken.

    Raises:
        MapetError: There is none, or there are no images.
    """
    from mapet.checkpoints.address import load_backbone
    from mapet.errors import SettingsError

    if kind != CLASSIFIER and (class_map is not None or use_ema):
        option = "--use-ema" if class_map is None else "--class-map"
        raise SettingsError(f"{option} is about a classifier, and a {kind} is evaluated here. Leave it out.")
    if kind == BACKBONE:
        return load_backbone(address, model=model, options=dict(options or {}))
    if kind == CLASSIFIER:
        from mapet.checkpoints.classifier import ModelChoice, load_classifier
        from mapet.evaluation.classify.classes import read_class_map

        names = class_map and read_class_map(class_map)
        return load_classifier(address, ModelChoice(model, options=options), use_ema=use_ema, names=names)
    from mapet.evaluation.tokens.data import open_tokens, run_at

    if data is None and run_at(Path(address)) is None:
        raise SettingsError(f"{address} has no images of its own. Give labelled ones: mapet evaluate tokens {address} DATA")
    return open_tokens(address)
