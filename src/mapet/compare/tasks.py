"""What a comparison measures: protocols, each on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mapet.compare.grid import Cell
from mapet.compare.manifest import Manifest
from mapet.compare.tokens import existing_tokenizer
from mapet.data.address import DataAddress
from mapet.data.named_sets import is_named_set
from mapet.errors import SettingsError
from mapet.evaluation.presets import protocols_of
from mapet.evaluation.protocol import Protocol, data_digits
from mapet.tokenizers.load import fingerprint_of


@dataclass(frozen=True)
class Task:
    """A protocol on labelled images.

    Args:
        protocol: Of backbones or of tokenizers.
        data: The images.
        place: What the images are called in the title; "" where there is one set.
    """

    protocol: Protocol
    data: str
    place: str = ""

    @property
    def title(self) -> str:
        """The protocol, its pool and, where there are several, the images."""
        protocol = self.protocol
        title = f"{protocol.title} ({protocol.pool})" if protocol.pools else protocol.title
        return f"{title} on {self.place}" if self.place else title

    @property
    def is_of_tokenizers(self) -> bool:
        """Whether it evaluates a tokenizer, and not a backbone."""
        return self.protocol.takes_a == "tokenizer"

    def protocol_for(self, seed: int) -> Protocol:
        """The protocol; where what is evaluated has no seed, the protocol has it."""
        has_seed = self.is_of_tokenizers and any(item.name == "seed" for item in fields(self.protocol))
        return replace(self.protocol, seed=seed) if has_seed else self.protocol  # type: ignore[call-arg]

    def folder(self, manifest: Manifest, cell: Cell, seed: int) -> Path:
        """Where its results on a run are kept, or those on a tokenizer."""
        if not self.is_of_tokenizers:
            return manifest.run(cell, seed).evaluations
        return manifest.out / "tokens_alone" / f"{cell.name}-seed{seed}-{data_digits(self.data)}"

    def result_file(self, manifest: Manifest, cell: Cell, seed: int) -> Path | None:
        """The file of its result; None before it was measured."""
        folder, protocol, data = self.folder(manifest, cell, seed), self.protocol_for(seed), self.data
        if self.is_of_tokenizers:  # the name depends on the tokenizer's fingerprint, too
            tokenizer = existing_tokenizer(manifest, cell)
            data = f"{data} {fingerprint_of(tokenizer)}" if tokenizer else data
        path = folder / f"{protocol.stem(data)}.json"
        return path if path.is_file() else None


def tasks_of(protocols: Sequence[str], places: Sequence[str]) -> list[Task]:
    """Every protocol on every set of labelled images.

    Raises:
        SettingsError: A protocol is unknown, or evaluates neither backbones nor tokenizers.
    """
    parsed_protocols = protocols_of(protocols, {})
    for protocol in parsed_protocols:
        if protocol.takes_a not in ("backbone", "tokenizer"):
            raise SettingsError(
                f"'{protocol.name}' evaluates a {protocol.takes_a}, and a comparison has backbones and tokenizers. Leave it out."
            )
    titles = titles_of(places)
    return [Task(protocol, place, title) for place, title in titles.items() for protocol in parsed_protocols]


def titles_of(places: Sequence[str]) -> dict[str, str]:
    """What sets of images are called beside each other: a name, or the whole location where names repeat; "" for one set."""
    places = [*dict.fromkeys(places)]
    addresses = [DataAddress.parse(place).place for place in places]
    names = [address.partition(":")[0] if is_named_set(address) else Path(address).name for address in addresses]
    titles = [name if names.count(name) == 1 else place for name, place in zip(names, places, strict=True)]
    return dict(zip(places, titles if len(places) > 1 else [""], strict=True))


def tasks_for(cell: Cell, tasks: Sequence[Task]) -> list[Task]:
    """Those that evaluate what the cell makes: a backbone or, without an objective, a tokenizer."""
    return [task for task in tasks if task.is_of_tokenizers == (not cell.objective)]
