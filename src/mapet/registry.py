"""Named things that users choose: one registry a kind, one line an entry. This is the one place that decides what a name may mean.

An entry is a dotted `package.module:Attribute`, imported when it is first used, so that listing names costs nothing. A user may
also type such a path: as a word of the command line, or as an argument in Python. A path that comes out of a file is not imported,
unless the user typed the same words (`--allow package.module:Attribute`, or `mapet.allow`). So somebody else's folder runs no code.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from mapet.errors import MapetError, NotAllowedError, SettingsError, allowed_values, nearest

T = TypeVar("T")

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
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
        error: What `create` raises where an option is wrong.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, str], base: str | None = None, error: type[MapetError] = SettingsError
    ) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._base = base
        self._error = error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def require(self, name: str) -> None:
        """Refuses what is neither one of the names nor a path; nothing is imported.

        Raises:
            SettingsError: There is no such thing.
        """
        if not isinstance(name, str):
            raise SettingsError(f"A {self.kind} has a name, not {name!r}. {nearest('', self)}")
        if name not in self._entries and not is_path(name):
            raise SettingsError(f"There is no {self.kind} called '{name}'. {nearest(name, self)}")

    def get(self, name: str) -> T:
        """The thing called `name`, wherever the name comes from.

        Raises:
            SettingsError: There is none, or it is of another kind.
            NotAllowedError: It is a path that the user did not type.
        """
        self.require(name)
        if name in self._entries:
            return self._checked(name, _import(self._entries[name], self.kind, name))
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

    def create(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        """The thing called `name`, called with `arguments` of the program and `options` of the user.

        Raises:
            SettingsError: There is none, or it is of another kind.
            MapetError: An error of this registry's own class: an option has another name or type, or must be given.
            NotAllowedError: It is a path that the user did not type.
        """
        factory: Any = self.get(name)
        title = f"The {self.kind} '{name}'"
        if len(options_of(factory)) < len(arguments) and not _takes_any_number(factory):
            raise self._error(f"{title} does not take the {len(arguments)} arguments that every {self.kind} is called with.")
        check_options(title, factory, options, self._error, skip=len(arguments))
        return factory(*arguments, **options)

    def _checked(self, name: str, thing: Any) -> T:
        """`thing`, if it is what entries of this registry are."""
        if self._base is None:
            fits, requirement = callable(thing), "anything that can be called"
        else:
            base = _import(self._base, self.kind, name)
            fits, requirement = isinstance(thing, type) and issubclass(thing, base), f"a subclass of {self._base}"
        if not fits:
            raise SettingsError(f"The {self.kind} '{name}' is {thing!r:.80}, not {requirement}.")
        return cast(T, thing)


def options_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What `factory` is called with, each with its type as annotation: `Any` where it has none that can be resolved.

    Where a constructor takes `**options` to pass them on, those of the class above are among them.
    """
    options: dict[str, inspect.Parameter] = {}
    for function in _constructors(factory):
        parameters = list(inspect.signature(function).parameters.values())
        typed_parameters = [
            each.replace(annotation=_type_of(function, each.name)) for each in parameters if each.kind not in _STARS
        ]
        options = {each.name: each for each in typed_parameters} | options
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    options.pop("self", None)
    if dataclasses.is_dataclass(factory):
        types = get_type_hints(factory, include_extras=True)
        options = {name: each.replace(annotation=types[name]) for name, each in options.items()}
    return options


def check_options(
    title: str, factory: Callable[..., Any], options: Mapping[str, Any], error: type[MapetError], skip: int = 0
) -> dict[str, Any]:
    """Compares options with what a class or a function takes: names, types, and those without a default.

    Args:
        title: What messages call it, such as "The objective 'mapet'".
        factory: The class or the function.
        options: What it is to be called with, besides the first `skip` arguments.
        error: The class of what is raised.
        skip: Arguments that are given otherwise.

    Returns:
        The options as their types have them: 1 as 1.0 where a float is taken.

    Raises:
        MapetError: An `error` that names the first option that does not fit, what is allowed, and the default.
    """
    parameters = dict(list(options_of(factory).items())[skip:])
    for option in options:
        if option not in parameters:
            raise error(f"{title} has no option '{option}'. {nearest(str(option), parameters)}")
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise error(f"{title} needs the option '{option}'; it has no default.")
    return {option: _checked_value(title, parameters[option], value, error) for option, value in options.items()}


def _checked_value(title: str, parameter: inspect.Parameter, value: Any, error: type[MapetError]) -> Any:
    """`value` as the parameter's type has it; nothing is converted to another type, and NaN and infinity are no numbers."""
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(parameter.annotation, config={"arbitrary_types_allowed": True, "allow_inf_nan": False})
    except PydanticUserError:  # a type with a configuration of its own
        adapter = TypeAdapter(parameter.annotation)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as problem:
        allowed = f"Allowed: {allowed_values(problem.errors())}."
    choices = [word for each in (parameter.annotation, *get_args(parameter.annotation)) for word in _words(each)]
    if choices and isinstance(value, str):
        allowed = nearest(value, choices)
    default = "" if parameter.default in (parameter.empty, None) else f" The default is {parameter.default!r}."
    raise error(f"{title}: {parameter.name} = {value!r:.80} is not allowed. {allowed}{default}")


def _words(annotation: Any) -> list[str]:
    """The words of a Literal."""
    return [word for word in get_args(annotation) if isinstance(word, str)] if get_origin(annotation) is Literal else []


def _constructors(factory: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The constructors of a class, its own before those of the classes above; a function itself."""
    if not isinstance(factory, type):
        return [factory]
    return [vars(kind)["__init__"] for kind in factory.__mro__ if "__init__" in vars(kind)]


def _type_of(function: Callable[..., Any], name: str) -> Any:
    """The annotation of one argument; `Any` where it names what only a type checker imports."""
    annotation = getattr(function, "__annotations__", {}).get(name, Any)
    try:
        alone = SimpleNamespace(__annotations__={name: annotation})
        return get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)[name]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _takes_any_number(factory: Callable[..., Any]) -> bool:
    return any(each.kind is each.VAR_POSITIONAL for each in inspect.signature(factory).parameters.values())


def _import(path: str, kind: str, name: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise SettingsError(f"The {kind} '{name}' cannot be imported: {error}.") from error
