"""What takes the place of the classes and functions that a pickle names, and the tensors of the tree that comes out."""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.errors import ModelError

_MOST_NODES, _MOST_DEPTH, _MOST_LETTERS = 1_000_000, 64, 1_000

# Of Python's own library a file of weights may name what holds values; nothing else there is needed in one.
_HOLDS_VALUES = "_codecs argparse array collections copyreg datetime decimal enum fractions numbers pathlib random re types uuid"
_BUILTINS = "set frozenset dict list tuple slice complex bytes range object int float str bool getattr"
# Of others, what loads, fetches or compiles.
_RUNS_CODE = (
    "torch.load",
    "torch.serialization.load",
    "torch.hub.",
    "torch.package.",
    "torch.jit.load",
    "torch.utils.cpp_extension.",
    "torch.utils.model_zoo.",
    "torch.distributed.rpc.",
    "numpy.load",
    "numpy.f2py.",
    "numpy.testing.",
    "numpy.distutils.",
)
_ALIASES = {"posix": "os", "nt": "os"}


class _AlsoDict(type):
    """torch's reader puts items only into types that equal dict; a class derived from dict may be among those of a file."""

    def __eq__(cls, other: object) -> bool:
        return other is dict or other is cls

    __hash__ = type.__hash__


class Inert(metaclass=_AlsoDict):
    """Stands for an object of any class: keeps its attributes in `state` and its items in `items`; arguments are dropped."""

    __slots__ = ("items", "state")
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *_: Any, **__: Any) -> Inert:  # noqa: D102
        inert = super().__new__(cls)
        inert.state, inert.items = {}, {}
        return inert

    def __setstate__(self, state: Any) -> None:
        self.state = next((part for part in state if isinstance(part, dict)), {}) if isinstance(state, tuple) else state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class Scripted(Inert):
    """Stands for an object of TorchScript, whose every attribute that is a tensor or such an object is named."""


def _first(value: Any = (), *_: Any) -> Any:
    return value


def _class_of(reference: Any) -> Any:
    """The class in a legacy reference ("module", class, file, source)."""
    return reference[1]


def _empty_list(*_: Any) -> list[Any]:
    return []


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.deque": _empty_list,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "mapet.class_of": _class_of,
}


def stand_ins(names: Iterable[tuple[str, str]]) -> list[tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: what stands for each (module, name); torch's own names stay as they are."""
    paths = {".".join(_of_python_3(*name)) for name in names}
    return [(_FUNCTIONS.get(path, Scripted if path.startswith("__torch__.") else Inert), path) for path in paths]


def refuse_code(names: Iterable[tuple[str, str]], path: Path) -> None:
    """Refuses a file whose pickle names what runs commands or code, or reaches files, processes or the network.

    It would not be called here, but by other readers.

    Raises:
        ModelError: Names it.
    """
    for module, name in (_of_python_3(*name) for name in names):
        top, *below = [*module.split("."), *name.split(".")[:-1]]
        harmless = (
            name in _BUILTINS.split()
            if module == "builtins"
            else top in _HOLDS_VALUES.split() or (module, name) == ("functools", "partial")
        )
        of_python = top in sys.stdlib_module_names and not (top == "code" and below)  # a package of one's own may be called code
        through = not sys.stdlib_module_names.isdisjoint(below) and "." in name
        if (of_python and (not harmless or "." in name)) or through or f"{module}.{name}".startswith(_RUNS_CODE):
            called = f"{_ALIASES.get(top, top)}.{'.'.join([*below, name.rpartition('.')[2]])}"[:100]
            raise ModelError(
                f"{path} is refused: its pickle calls {called}; weights need nothing of the kind. Nothing in it was "
                "run. torch.load with weights_only=False, or pickle, would make the call: do not open it so. Get the weights from "
                "where you trust, as safetensors if they are there."
            )


def _of_python_3(module: str, name: str) -> tuple[str, str]:
    """Files are written with the names of Python 2."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def subtree(tree: Any, keys: Sequence[str]) -> Any:
    """What stands in `tree` below the first of `keys` that it has; else all of it."""
    if not isinstance(tree, dict):
        return tree
    return next((tree[key] for key in keys if isinstance(tree.get(key), dict | Inert)), tree)


def flatten(tree: Any) -> dict[str, Tensor]:
    """The tensors of a tree under their dotted names.

    Raises:
        ModelError: It has no end, or two tensors of one name; the message is a clause.
    """
    tensors: dict[str, Tensor] = {}
    nodes = 0

    def visit(node: Any, path: tuple[str, ...]) -> None:
        nonlocal nodes
        nodes += 1
        if nodes > _MOST_NODES or len(path) > _MOST_DEPTH:
            raise ModelError(f"it nests more than {_MOST_DEPTH} levels or {_MOST_NODES} entries, or contains itself")
        if isinstance(node, Tensor):
            name = ".".join(path)
            if name in tensors or len(name) > _MOST_LETTERS:
                what = "two tensors called" if name in tensors else f"a tensor whose name is longer than {_MOST_LETTERS} letters:"
                raise ModelError(f"it has {what} {name[:100]!r}")
            tensors[name] = torch.Tensor.detach(node)
        for key, child in _children(node):
            if isinstance(key, str | int):
                visit(child, (*path, str(key)))

    visit(tree, ())
    return tensors


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    """What a node of the tree holds, by name; of a module, what its `state_dict` would."""
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)
    elif isinstance(node, Inert) and isinstance(node.state, dict) and "_parameters" in node.state:
        passing = node.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers", "_modules"):
            entries = node.state.get(kind)
            for key, child in entries.items() if isinstance(entries, dict) else ():
                if not (kind == "_buffers" and isinstance(passing, list | set) and key in passing):
                    yield key, child
    elif isinstance(node, Inert):
        members = node.state if isinstance(node, Scripted) else node.items
        yield from members.items() if isinstance(members, dict) else ()
