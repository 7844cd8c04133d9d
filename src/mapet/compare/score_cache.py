"""The scorecards and galleries of tokenizers, made once and kept: a network takes minutes to tokenise the images on a CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mapet.errors import CheckpointError
from mapet.report.drawing import Picture, slug
from mapet.runtime.files import atomic_directory, recover, sha256, write_json
from mapet.runtime.json_files import read_json, sealed, unsealed
from mapet.runtime.lock import only_writer
from mapet.runtime.regular import read_regular
from mapet.tokenizers.scoring.scorecard import Scorecard

_FORMAT = 1
_CARD = "scorecard.json"
_MOST_PICTURE = 64 << 20  # bytes


@dataclass(frozen=True)
class CachedScore:
    """A scorecard and the pictures of the codes.

    Args:
        title: What to call the tokenizer.
        card: Its scorecard.
        pictures: Its galleries.
    """

    title: str
    card: Scorecard
    pictures: list[Picture]


def cached_score(folder: Path, title: str, facts: dict[str, Any], make: Callable[[], CachedScore]) -> CachedScore:
    """What `make` makes, or made before; made again where what was kept is damaged or of another version.

    Args:
        folder: Every tokenizer has a folder of its own in it.
        title: What to call the tokenizer now.
        facts: Everything that the scores depend on, JSON.
        make: Scores the tokenizer, and draws its galleries.

    Raises:
        InUseError: Another process makes it.
        MapetError: Whatever `make` raises.
    """
    score_folder = folder / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    facts = {"format": _FORMAT, **facts}
    if score := _read(score_folder, title, facts):
        return score
    with only_writer(score_folder):
        if score := _read(score_folder, title, facts):  # another process made it meanwhile
            return score
        score = make()
        _write(score_folder, score, facts)
        return score


def _write(folder: Path, score: CachedScore, facts: dict[str, Any]) -> None:
    with atomic_directory(folder) as partial:
        pictures = []
        for picture in score.pictures:
            name = picture.name.removesuffix(f"-{slug(score.title)}")
            (partial / f"{name}.png").write_bytes(picture.png)
            described = {key: getattr(picture, key) for key in ("width", "height", "alt", "caption")}
            pictures.append({"name": name, "sha256": sha256(partial / f"{name}.png"), **described})
        write_json(partial / _CARD, sealed({**facts, "card": asdict(score.card), "pictures": pictures}))


def _read(folder: Path, title: str, facts: dict[str, Any]) -> CachedScore | None:
    """None where there is nothing, or something else than `_write` wrote for these facts."""
    path = recover(folder) / _CARD
    if not path.is_file():
        return None
    try:
        content = unsealed(read_json(path, dict), path, required=True)
        if any(content.get(name) != value for name, value in facts.items()):
            return None
        card = TypeAdapter(Scorecard).validate_python(content["card"])
        return CachedScore(title, card, [_picture(folder, title, described) for described in content["pictures"]])
    except (CheckpointError, ValidationError, LookupError, TypeError, OSError):
        return None


def _picture(folder: Path, title: str, described: dict[str, Any]) -> Picture:
    facts = {**described}
    path, digest = folder / f"{facts['name']}.png", facts.pop("sha256")
    png = read_regular(path, _MOST_PICTURE) if path.parent == folder else b""
    if hashlib.sha256(png).hexdigest() != digest:
        raise CheckpointError(f"{path} is not what was written.")
    picture = Picture(png=png, **facts)
    return replace(picture, name=f"{picture.name}-{slug(title)}")
