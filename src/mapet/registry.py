"""Named things that users choose: one registry a kind, one line an entry. This is the one place that decides what a name may mean.

An entry is a dotted `package.module:Attribute`, imported when it is first used, so that listing names costs nothing. A user may
also type such a path: as a word of the command line, or as an argument in Python. A path that comes out of a file is not imported,
unless the user typed the same words (`--allow package.module:Attribute`, or `mapet.allow`). So somebody else's folder runs no code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast, get_type_hints

from mapet.errors import MapetError, NotAllowedError, SettingsError, nearest, wanted

T = TypeVar("T")

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_typed: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())


def allow(*names: str) -> None:
    """Permits files to name these from now on: a class as `package.module:Class`, or an address such as hf://datasets/OWNER/NAME.

    The permission holds in the current context, in general until the process ends.
    """
    _typed.set(_typed.get() | frozenset(names))


def is_allowed(name: str) -> bool:
    """Whether the user typed `name`."""
    return name in _typed.get()


def is_path(name: str) -> bool:
    """Whether `name` has the form `package.module:Attribute`."""
    return _PATH.fullmatch(name) is not None


def refuse_unless_allowed(name: str, what: str) -> None:
    """Refuses a name out of a file that only the user may choose.

    Args:
        name: What the file names.
        what: What using it would do, a sentence.

    Raises:
        NotAllowedError: The user did not type it; ends with the word to add.
    """
    if not is_allowed(name):
        raise NotAllowedError(
            f"A file names {name!r}. {what} If you trust it, add --allow {shlex.quote(name)} (in Python: mapet.allow({name!r}))."
        )


class Registry(Generic[T]):
    """Names for one kind of thing.

    Args:
        kind: What the entries are, in the singular, for messages ("objective").
        entries: Name to `package.module:Attribute`.
        base: `package.module:Class` that every entry is a subclass of; None where entries are functions.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], base: str | None = None) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._base = base

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> T:
        """The thing called `name`, wherever the name comes from.

        Raises:
            SettingsError: There is none, or it is of another kind.
            NotAllowedError: It is a path that the user did not type.
        """
        if not isinstance(name, str):
            raise SettingsError(f"A {self.kind} has a name, not {name!r}. {nearest('', self)}")
        if name in self._entries:
            return self._checked(name, _import(self._entries[name], self.kind, name))
        if not is_path(name):
            raise SettingsError(f"There is no {self.kind} called '{name}'. {nearest(name, self)}")
        refuse_unless_allowed(name, f"It is code that is not part of mapet, meant as {self.kind}, and was not imported.")
        return self._checked(name, _import(name, self.kind, name))

    def get_or_import(self, name: str) -> T:
        """The thing called `name`, which the user typed: also one at `package.module:Attribute`. Never for a value out of a file.

        Raises:
            SettingsError: There is none, or it is of another kind.
        """
        if is_path(name):
            allow(name)
        return self.get(name)

    def _checked(self, name: str, thing: Any) -> T:
        """`thing`, if it is what entries of this registry are."""
        if self._base is None:
            fits, wanted = callable(thing), "anything that can be called"
        else:
            base = _import(self._base, self.kind, name)
            fits, wanted = isinstance(thing, type) and issubclass(thing, base), f"a subclass of {self._base}"
        if not fits:
            raise SettingsError(f"The {self.kind} '{name}' is {thing!r:.80}, not {wanted}.")
        return cast(T, thing)


def check_options(
    title: str, factory: Callable[..., Any], options: Mapping[str, Any], error: type[MapetError], skip: int = 0
) -> None:
    """Compares options with what a class takes: names, types, and those without a default.

    Args:
        title: What messages call the class.
        factory: The class.
        options: What it is to be called with, besides the first `skip` arguments.
        error: The class of what is raised.
        skip: Arguments that are given otherwise.

    Raises:
        MapetError: An `error` that names the first option that does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    parameters = dict(list(inspect.signature(factory).parameters.items())[skip:])
    types = get_type_hints(factory.__init__)
    start = title[:1].upper() + title[1:]
    for option, value in options.items():
        if option not in parameters:
            raise error(f"{start} have no option '{option}'. {nearest(str(option), parameters)}")
        try:
            TypeAdapter(types.get(option, Any)).validate_python(value, strict=True)
        except ValidationError as problem:
            raise error(f"The option {option} of {title} is {value!r:.80}. Allowed: {wanted(problem.errors())}.") from None
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise error(f"{start} need the option '{option}'.")


def _import(path: str, kind: str, name: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise SettingsError(f"The {kind} '{name}' cannot be imported: {error}.") from error
