"""Named things that users choose: one registry a kind, one line an entry.

An entry is a dotted `package.module:Attribute`, imported when it is first asked for, so that listing names costs nothing.
Anything importable can be named in that form too, without being registered.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from mapet.errors import SettingsError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names for one kind of thing.

    Args:
        kind: What the entries are, in the singular, for messages ("objective").
        entries: Name to `package.module:Attribute`.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> T:
        """The thing called `name`, or the one at `package.module:Attribute`."""
        target = self._entries.get(name, name)
        module_name, _, attribute = target.partition(":")
        if not attribute or not module_name or module_name.startswith("."):
            raise SettingsError(f"There is no {self.kind} called '{name}'. {nearest(name, self)}")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"The {self.kind} '{name}' cannot be imported: {error}.") from error
