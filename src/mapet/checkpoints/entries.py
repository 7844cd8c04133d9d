"""Tensors of a file on their way to timm's names, each with the entries of the file that it was made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mapet.errors import ModelError


@dataclass(frozen=True)
class Entry:
    """A tensor under a new name.

    Args:
        value: The tensor.
        sources: Names in the file of what it was made of.
        changed: Its numbers are not those of one entry of the file.
    """

    value: Tensor
    sources: tuple[str, ...]
    changed: bool = False


class TensorMap(dict[str, Entry]):
    """Entries by their present names."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TensorMap:
        """Every tensor of a file, still under its own name."""
        return cls({name: Entry(value, (name,)) for name, value in tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors alone."""
        return {name: entry.value for name, entry in self.items()}

    def rename(self, rules: Sequence[tuple[str, str]]) -> TensorMap:
        """Each name after all rules, which are regular expressions and what takes the place of their match.

        Raises:
            ModelError: Two entries would have the same name.
        """
        renamed = TensorMap()
        for name, entry in self.items():
            new = name
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
            if new in renamed:
                raise ModelError(f"Both {renamed[new].sources[0]} and {entry.sources[0]} stand for {new}. Give a file with one.")
            renamed[new] = entry
        return renamed

    def without(self, pattern: str) -> TensorMap:
        """All but those whose whole name matches."""
        return TensorMap({name: entry for name, entry in self.items() if not re.fullmatch(pattern, name)})

    def join(self, parts: Sequence[str], into: str) -> None:
        """Puts entries that end in one of `parts` together, first to last, along the first axis; `into` is the new ending.

        Raises:
            ModelError: Some of the parts are there and others are not.
        """
        for name in [name for name in self if name.endswith(parts[0])]:
            stem = name.removesuffix(parts[0])
            absent = [stem + part for part in parts if stem + part not in self]
            if absent:
                raise ModelError(f"The weights have {name} but not {absent[0]}.")
            self.replace(stem + into, [stem + part for part in parts], torch.cat([self[stem + part].value for part in parts]))

    def replace(self, name: str, used: Sequence[str], value: Tensor) -> None:
        """Removes the entries `used` and puts `value`, made of them, under `name`."""
        sources = tuple(source for part in used for source in self[part].sources)
        for part in used:
            del self[part]
        self[name] = Entry(value, sources, changed=True)
