"""The settings and data of a run in config.json. A continued run must have the same; the error has the difference."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapet.config.settings import PretrainSettings
from mapet.data.sources import absolute_location
from mapet.errors import CheckpointError
from mapet.runtime.files import write_json
from mapet.runtime.run_directory import WAY_OUT, RunDirectory

_NAMED = 4


class RunRecord:
    """The content of config.json for a new run; a continued run must have the same.

    A run directory in which nothing was made yet, because an earlier start was refused, may be begun again with other settings.
    A start that is refused changes nothing in the record of a run that was begun.

    Args:
        run: The run directory.
        data: Where the images are; may move between two starts.
        settings: Of the run.
        tokenizer: The tokenizer given, if any.
        tokens: The token store given, if any.

    Raises:
        CheckpointError: The run was begun with other settings; names those that differ.
    """

    def __init__(
        self,
        run: RunDirectory,
        data: str,
        settings: PretrainSettings,
        tokenizer: str | Path | None,
        tokens: str | Path | None,
    ) -> None:
        self._run = run
        self._begun = _is_begun(run)
        before = run.read_config() if self._begun else {}
        self._data_before = before.get("data")
        if self._begun:
            _refuse_other_science(run, before, settings)
        self.config: dict[str, Any] = {
            "data": absolute_location(data),
            "tokenizer": _absolute(tokenizer) or before.get("tokenizer"),
            "tokens": _absolute(tokens) or before.get("tokens"),
            "tokenizer_fingerprint": before.get("tokenizer_fingerprint"),
            "images": before.get("images"),
            "unreadable_images": before.get("unreadable_images", 0),
            "science_hash": settings.science_hash,
            "science": settings.science,
            "mechanics": settings.mechanics.model_dump(mode="json"),
        }

    def begin(self) -> None:
        """Claims the run directory, where it is new, and records this start."""
        if not self._begun:
            write_json(self._run.config, self.config)
        self._run.record_environment()

    @property
    def tokenizer(self) -> str | None:
        """The external tokenizer given now or when the run was begun."""
        return self.config["tokenizer"]

    @property
    def tokens(self) -> str | None:
        """The external token store given now or when the run was begun."""
        return self.config["tokens"]

    def count_unreadable(self, images: int) -> None:
        """Records how many of the images a start could not read, where that is more than an earlier start found."""
        if images > self.config["unreadable_images"]:
            self.config["unreadable_images"] = images
            write_json(self._run.config, self.config)

    def fix_inputs(self, tokenizer_fingerprint: str | None, sample_keys: Sequence[str], writes: bool = True) -> None:
        """Records what is trained on, or compares it with what was recorded when the run was begun.

        Args:
            tokenizer_fingerprint: Of the tokens' tokenizer; None for an objective without tokens.
            sample_keys: Of all training images, in the order in which the source has them.
            writes: Whether this process writes; of several, only the first does.

        Raises:
            CheckpointError: Tokenizer or images are not those that the run was begun with.
        """
        fingerprint = self.config["tokenizer_fingerprint"]
        if tokenizer_fingerprint is not None and fingerprint not in (None, tokenizer_fingerprint):
            raise CheckpointError(
                f"{self._run.path} was begun with tokens of the tokenizer {fingerprint[:12]}, these are of "
                f"{tokenizer_fingerprint[:12]}. Give the --tokens or --tokenizer that it was begun with, or another --out."
            )
        images = {"count": len(sample_keys), "sha256": hashlib.sha256("\n".join(sample_keys).encode()).hexdigest()}
        before = self.config["images"]
        if before is not None and not (isinstance(before, dict) and isinstance(before.get("count"), int)):
            raise CheckpointError(f"{self._run.config} is damaged: 'images' is {before!r:.80}. Bring the file back.")
        if before not in (None, images):
            now = f" of {self.config['data']}" if self.config["data"] != self._data_before else ""
            same = before["count"] == images["count"]
            other = f"now they are other ones{now}, or in another order" if same else f"now they are {images['count']}{now}"
            raise CheckpointError(
                f"{self._run.path} was begun on {before['count']} images of {self._data_before}; {other}. It cannot be continued "
                "exactly. Bring back the images that it was begun on, or give another --out."
            )
        self.config |= {"tokenizer_fingerprint": tokenizer_fingerprint, "images": images}
        if writes:
            write_json(self._run.config, self.config)


def _is_begun(run: RunDirectory) -> bool:
    outputs = (run.tokenizer, run.tokens, run.checkpoints, run.backbone)
    return run.config.is_file() and any(path.exists() for path in outputs)


def _absolute(path: str | Path | None) -> str | None:
    """A path that holds from any working folder; a name such as "k-clip", where nothing lies at it, as it is."""
    return None if path is None else str(Path(path).absolute() if Path(path).exists() else path)


def _refuse_other_science(run: RunDirectory, before: dict[str, Any], settings: PretrainSettings) -> None:
    for name in ("science", "science_hash"):
        if name not in before:
            raise CheckpointError(f"{run.config} is not what a run writes: the file is damaged (it has no '{name}'). {WAY_OUT}")
    if before["science_hash"] == settings.science_hash:
        return
    old, new = _flat(before["science"]), _flat(settings.science)
    changed = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    raise CheckpointError(
        f"{run.path} holds a run with other settings: {'; '.join(changed[:_NAMED])}{more}. "
        f"Continue it with the command in {run.environment}, or give another --out."
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {name: value for key, entry in values.items() for name, value in _flat(entry, f"{prefix}{key}.").items()}
