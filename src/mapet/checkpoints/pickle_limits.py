"""The names in a pickle and the work of reading it, computed without unpickling it.

torch's reader with `weights_only=True` runs no code, but it sets no limit: a file of some kilobytes can have a dict copied a
million times. So each pickle is first walked through operation by operation, on a stack that holds sizes in place of objects.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

from mapet.errors import ModelError

MOST_BYTES = 2**24  # twelve thousand tensors need 3 MB
MOST_OPERATIONS = 1_000_000
_MOST_CALLS, _MOST_DEPTH, _MOST_WAITING = 120_000, 200, 100_000
_MOST_LOOKUPS = 20_000_000  # torch's reader goes through all names at every call
_FREELY_COPIED = 2**18
_KINDS = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
_CALLS = ("REDUCE", "NEWOBJ", "BUILD")
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
_REBUILT = frozenset(("torch._utils", f"_rebuild_{kind}") for kind in _KINDS)
_OF_TORCHS_READER = (
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST EMPTY_SET "
    "EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS "
    "SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3"
)
_OPERATIONS = frozenset(_OF_TORCHS_READER.split())


@dataclass
class PickleContents:
    """What one pickle holds.

    Args:
        names: Everything that it imports, as (module, name).
        references: Its persistent ids: (kind, type, key, device, count, ...) of storages.
        constants: Its numbers, strings, True and False in order.
        modules: Where legacy files refer to a class with its source: first byte of the reference, byte behind it.
        end: The byte behind the pickle.
    """

    names: dict[tuple[str, str], None] = field(default_factory=dict)  # in the order of the file
    references: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    modules: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0


@dataclass(slots=True, eq=False)
class _Cell:
    """An object to come: how much it holds, how deep it nests, its value if it is a constant, its first byte, whether used."""

    weight: int
    depth: int = 0
    value: Any = None
    start: int = 0
    used: bool = False


def examine(content: bytes) -> PickleContents:
    """Walks through the pickle at the beginning of `content`.

    Raises:
        ModelError: It is damaged, has operations that torch's reader lacks, or needs more work or memory than files of weights
            of its size do; the message is a clause.
    """
    try:
        return _walk(content)
    except ModelError:
        raise
    except Exception as error:  # of a damaged pickle, any may come
        raise ModelError(f"it is not a pickle that can be read ({str(error)[:100] or type(error).__name__})") from error


def _walk(content: bytes) -> PickleContents:
    contents, stack, marks, memo = PickleContents(), [], [], {}
    operations = calls = fetched = 0
    for operation, argument, position in pickletools.genops(content[:MOST_BYTES]):
        name, position = operation.name, position or 0
        operations, calls = operations + 1, calls + (name in _CALLS)
        _check_counts(name, operations, calls, len(contents.names), argument)
        if len(marks) > _MOST_DEPTH or len(stack) > _MOST_WAITING:
            raise ModelError(f"it nests more than {_MOST_DEPTH} levels, or more than {_MOST_WAITING} objects wait for their place")
        if name == "MARK":
            marks.append((len(stack), position))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            fetched += stack[-1].weight
            if fetched > _FREELY_COPIED + len(content):
                raise ModelError("it repeats its parts more often than its size warrants")
        elif name in _FILLING:
            parts, _ = _pop(operation, stack, marks, keep=1)
            if stack[-1].used and name != "BUILD":  # a copy of what holds it would cost more than was counted
                raise ModelError("it fills a container that it has used before")
            stack[-1].weight += sum(part.weight for part in parts)
        elif name == "STOP":
            contents.end = position + 1
        elif name != "PROTO":
            parts, start = _pop(operation, stack, marks)
            stack.append(_new_cell(name, argument, parts, position if start is None else start, contents))
            if name == "BINPERSID" and stack[-1].value[:1] == ("module",):
                contents.modules.append((stack[-1].start, position + 1))
    return contents


def _check_counts(name: str, operations: int, calls: int, names: int, argument: Any) -> None:
    if name not in _OPERATIONS or (name == "PROTO" and argument != 2):
        raise ModelError(f"its pickle uses {name} {argument if name == 'PROTO' else ''}".rstrip() + ", which torch.save does not")
    if operations > MOST_OPERATIONS or calls > _MOST_CALLS or names * calls > _MOST_LOOKUPS:
        raise ModelError(f"it is larger than files of weights are: {operations} operations, {calls} objects of {names} classes")


def _pop(operation: Any, stack: list[_Cell], marks: list[tuple[int, int]], keep: int = 0) -> tuple[list[_Cell], int | None]:
    """The cells that an operation takes, but for the `keep` lowest; and where the first of them begins."""
    if pickletools.markobject in operation.stack_before:
        bottom, start = marks.pop()
    else:
        bottom, start = len(stack) - len(operation.stack_before) + keep, None
    if bottom < keep:
        raise ModelError("it takes more from its stack than there is")
    parts = stack[bottom:]
    del stack[bottom:]
    for part in parts:
        part.used = True
    return parts, parts[0].start if start is None and parts else start


def _check_call(function: Any, arguments: Any) -> None:
    """Of what torch's reader calls, only that which rebuilds tensors and plain containers; a name that is not its own is inert."""
    if function == ("_codecs", "encode"):  # how Python writes bytes; other codecs would be imported, and cost more
        allowed = isinstance(arguments, tuple) and len(arguments) == 2 and arguments[1] in ("latin1", "utf-8")
    elif function == ("torch._tensor", "_rebuild_from_type_v2"):
        allowed = isinstance(arguments, tuple) and arguments[:1] != () and arguments[0] in _REBUILT
    else:
        module, name = function if isinstance(function, tuple) and len(function) == 2 else ("", "")
        of_torch = module == "torch._utils" or (module.startswith("torch") and name.endswith(("Tensor", "Storage")))
        allowed = function in _REBUILT or not (of_torch or name == "bytearray")
    if not allowed:
        raise ModelError(f"it holds an object made by {'.'.join(map(str, function))[:100]}, which is not read here")


def _new_cell(name: str, argument: Any, parts: list[_Cell], start: int, contents: PickleContents) -> _Cell:
    """The cell of the object that an operation makes of `parts`."""
    depth = 1 + max((part.depth for part in parts), default=0)
    if depth > _MOST_DEPTH:
        raise ModelError(f"it nests more than {_MOST_DEPTH} levels")
    weight = 1 + sum(part.weight for part in parts) + (len(argument) if isinstance(argument, str | bytes) else 0)
    value: Any = argument
    if name == "GLOBAL":
        module, _, attribute = str(argument).partition(" ")
        weight, value = 1, (module, attribute)
        contents.names[module, attribute] = None
    elif name.startswith(("TUPLE", "EMPTY_TUPLE")):
        value = tuple(part.value for part in parts)
    elif name == "BINPERSID":
        value = parts[0].value if isinstance(parts[0].value, tuple) else (parts[0].value,)
        contents.references.append(value)
    elif name in ("NEWTRUE", "NEWFALSE"):
        value = name == "NEWTRUE"
    if name in ("REDUCE", "NEWOBJ"):
        _check_call(parts[0].value, parts[1].value)
    if not parts:
        contents.constants.append(value)
    return _Cell(weight, depth, value, start)
