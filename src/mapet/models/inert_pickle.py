"""Pickles of PyTorch, read as data: nothing that they name is imported or called.

A pickle is a programme: it names functions, and unpickling calls them with arguments of its choice. Here a name stands for itself.
The functions with which PyTorch rebuilds tensors become those of this module, which only write down where a tensor's numbers lie;
every other name becomes an `Inert`, which keeps what it is given. Names that no weights need, and that do something to the machine
when they are called (os.system, eval), are refused: whoever wrote such a file wrote it for another reader.
"""

from __future__ import annotations

import pickle
import pickletools
import sys
from collections.abc import Callable
from io import BytesIO
from mmap import mmap
from typing import Any, NamedTuple

import torch

from mapet.errors import ModelError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# The most that is read; twelve thousand tensors stay below. A byte of pickle can ask for a hundred bytes of memory.
_MOST_BYTES, _MOST_TUPLES, _MOST_CLASSES = 2**24, 60_000, 10_000

# Modules whose names no weights need, by what they give access to.
_HARMFUL_MODULES = {
    "commands and processes": "os posix nt subprocess _posixsubprocess pty multiprocessing concurrent asyncio _winapi winreg",
    "code": "sys runpy importlib _frozen_importlib imp code codeop ctypes _ctypes cffi operator _operator pip ensurepip",
    "code, by way of a tool": "pdb bdb timeit cProfile doctest pydoc",
    "other pickles": "pickle _pickle marshal shelve cloudpickle dill joblib",
    "files and network": "shutil socket _socket socketserver webbrowser http ftplib smtplib telnetlib",
}
_REFUSED_MODULES = frozenset(name for names in _HARMFUL_MODULES.values() for name in names.split())
_HARMFUL_NAMES = {
    "torch": "load serialization.load hub package jit.load utils.cpp_extension utils.model_zoo distributed.rpc",
    "numpy": "load f2py distutils testing",
    "io": "open open_code FileIO",
    "urllib": "request",
}
# Of some modules only these are taken. A partial is as harmless as the function in it, which is looked at like any other.
_HARMLESS = {
    "builtins": "set frozenset dict list tuple slice complex bytearray bytes range object int float str bool unicode long xrange",
    "functools": "partial",
    "types": "SimpleNamespace MappingProxyType",
}
_ALIASES = {"__builtin__": "builtins", "posix": "os", "nt": "os", "_io": "io", "_operator": "operator"}


class ForbiddenNameError(ModelError):
    """A pickle names what no weights need and what would harm if it were called; the message is a clause."""

    def __init__(self, origin: str) -> None:
        module, _, name = origin.partition(".")
        asked = f"{_ALIASES.get(module, module)}.{name}"[:100]
        super().__init__(f"its pickle asks for {asked} to be called; weights need nothing of the kind")


class Storage(NamedTuple):
    """A run of `count` numbers in the file, under the name `key`."""

    key: str
    dtype: torch.dtype
    count: int


class StoredTensor(NamedTuple):
    """Where a tensor's numbers lie: `offset`, `size` and `stride` count numbers of `dtype` (None: the storage's).

    They are what the pickle says, which in a hostile file can be anything.
    """

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any = None


class Inert:
    """Stands for an object of any other class: keeps its attributes in `state` and its entries in `entries`."""

    __slots__ = ("entries", "state")
    origin = ""  # "package.module.Class"
    state: dict[Any, Any]
    entries: dict[Any, Any]

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Takes any arguments; they are dropped."""
        inert = super().__new__(cls)
        inert.state, inert.entries = {}, {}
        return inert

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """What a call of it would give, as where a method was pickled."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # a pair where the class has slots
            if isinstance(part, dict):
                self.state.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Items of a class derived from list are numbered."""
        self.entries[len(self.entries)] = value


class Entries(dict[Any, Any]):
    """Stands for an OrderedDict, without its attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Function:
    """One of the functions below; a plain function could be given other defaults by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ModelError("it sets attributes of a function")


class Description(NamedTuple):
    """A pickle as data: `tree` is made of dicts, lists, tuples, strings, numbers, `StoredTensor`s and `Inert`s."""

    tree: Any
    storages: list[Storage]
    end: int  # the byte after the pickle


def load_pickle(content: bytes | mmap, start: int = 0) -> Description:
    """What the pickle at byte `start` describes.

    Args:
        content: A file or a part of it.
        start: Where the pickle begins.

    Raises:
        ModelError: It is damaged or larger than weights need; the message is a clause.
    """
    window = bytes(content[start : start + _MOST_BYTES])
    try:
        end = _examine(window)
        unpickler = _Unpickler(BytesIO(window[:end]), encoding="utf-8", errors="replace")
        return Description(unpickler.load(), unpickler.storages, start + end)
    except ModelError:
        raise
    except Exception as error:  # of a damaged pickle, any may come
        raise ModelError(f"it is not a pickle that can be read ({str(error)[:100] or type(error).__name__})") from error


def _examine(window: bytes) -> int:
    """The length of the pickle, if it asks for no more memory or depth than its own size warrants."""
    tuples, end = 0, 0
    for operation, argument, position in pickletools.genops(window):
        number = argument if isinstance(argument, int) and operation.name in ("PUT", "LONG_BINPUT") else 0
        if not 0 <= number <= len(window):
            raise ModelError(f"it numbers an object {number}, more than it can hold")
        if operation.name.startswith("EXT"):
            raise ModelError("it uses the extension registry, which PyTorch never does")
        tuples += operation.name.startswith("TUPLE")
        end = (position or 0) + 1
    if tuples > _MOST_TUPLES:  # nested and hashed, more would overflow Python's own stack
        raise ModelError(f"it has {tuples} tuples; up to {_MOST_TUPLES} are read")
    return end


class _Unpickler(pickle.Unpickler):
    """Gives inert stand-ins for everything that is named."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.storages: list[Storage] = []
        self._classes: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`."""
        if module.partition(".")[0] == "torch":
            if (dtype := _DTYPES.get(name)) is not None:
                return dtype
            if isinstance(dtype := vars(torch).get(name), torch.dtype):
                return dtype
        function = _FUNCTIONS.get(f"{module}.{name}")
        if function is not None:
            return function
        if _ALIASES.get(module, module) == "builtins" and name == "getattr":
            return _Function(self._attribute)
        _refuse_harm(module, name)
        return self._stand_in(module, name)

    def _attribute(self, owner: Any = None, name: Any = None, *_default: Any) -> Any:
        """How Python writes nested classes, members of enums and methods; not those of its own library, which can do harm."""
        origin = owner.origin if isinstance(owner, Inert) or (isinstance(owner, type) and issubclass(owner, Inert)) else ""
        if not origin or not isinstance(name, str):
            raise ForbiddenNameError("builtins.getattr")
        module, _, path = origin.rpartition(".")
        _refuse_harm(module, f"{path}.{name}")
        return self._stand_in(module, f"{path}.{name}")

    def _stand_in(self, module: str, name: str) -> type[Inert]:
        if (module, name) not in self._classes:
            if len(self._classes) >= _MOST_CLASSES:
                raise ModelError(f"it names more than {_MOST_CLASSES} classes")
            self._classes[module, name] = type("Inert", (Inert,), {"__slots__": (), "origin": f"{module}.{name}"})
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A storage; or, in files older than PyTorch 1.6, the class of a module with its source."""
        match pid:
            case ("module", stand_in, *_):
                return stand_in
            case ("storage", dtype, key, _, count) | ("storage", dtype, key, _, count, None):
                if not (isinstance(key, str) and isinstance(dtype, torch.dtype) and isinstance(count, int)):
                    raise ModelError("it describes a storage without a name, a type or a length")
                self.storages.append(Storage(key, dtype, count))
                return self.storages[-1]
        raise ModelError("it refers to something that is not a storage")


def _refuse_harm(module: str, name: str) -> None:
    """Refuses `module.name` if it is, or is reached through, something that can do harm."""
    parts = name.split(".")
    top, _, below = f"{module}.{name}".partition(".")
    top = _ALIASES.get(top, top)
    own_package_called_code = top == "code" and "." in module
    harmful = (
        (top in _REFUSED_MODULES and not own_package_called_code)
        or not _REFUSED_MODULES.isdisjoint(parts[:-1])
        or any(f"{below}.".startswith(f"{refused}.") for refused in _HARMFUL_NAMES.get(top, "").split())
        or (top in _HARMLESS and name not in _HARMLESS[top].split())
        or any(part.startswith("__") for part in parts[1:])
        or (len(parts) > 1 and top in sys.stdlib_module_names)
    )
    if harmful:
        raise ForbiddenNameError(f"{module}.{name}")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any = None, _hooks: Any = None, metadata: Any = None) -> Any:
    if metadata:  # conjugate or negative views of complex numbers
        return Inert()
    return StoredTensor(storage, offset, size, stride)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    return Inert() if metadata else StoredTensor(storage, offset, size, stride, dtype)


def _first(value: Any = (), *_: Any) -> Any:
    return value


def _of_subclass(rebuild: Any, _class: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(rebuild, _Function):
        return Inert()
    return rebuild(*arguments)


_FUNCTIONS: dict[str, Any] = {
    "collections.OrderedDict": Entries,
    "__builtin__.set": _Function(_first),  # to which PyTorch's protocol gives a list
    "builtins.set": _Function(_first),
    "torch._utils._rebuild_tensor": _Function(_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_tensor_v3": _Function(_typed_tensor),
    "torch._utils._rebuild_parameter": _Function(_first),
    "torch._utils._rebuild_parameter_with_state": _Function(_first),
    "torch._tensor._rebuild_from_type_v2": _Function(_of_subclass),
    "torch.jit._pickle.restore_type_tag": _Function(_first),
    "torch.jit._pickle.build_tensorlist": _Function(_first),
}
