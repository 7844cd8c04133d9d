"""Pickles of protocols 3 to 5 in the operations of protocol 2, the only ones that torch's safe reader supports.

`torch.save(..., pickle_protocol=4)` writes the same objects as protocol 2, by other operations. These are replaced one by one, and
nothing is unpickled. The result is examined (`pickle_limits`) and read like any other pickle.
"""

from __future__ import annotations

import pickletools
import struct
from itertools import pairwise
from typing import Any

from mapet.checkpoints.pickle_limits import MOST_BYTES, MOST_OPERATIONS
from mapet.errors import ModelError

_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_PUTS, _GETS = ("BINPUT", "LONG_BINPUT", "MEMOIZE"), ("BINGET", "LONG_BINGET")
# Sets become lists and tuples: a module keeps the names of passing buffers in one, and nothing else of them is read.
_REPLACED = {"PROTO": b"\x80\x02", "FRAME": b"", "EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t"}


def in_protocol_2(content: bytes) -> tuple[bytes, int]:
    """Rewrites the pickle at the beginning of `content`.

    Returns:
        The pickle in protocol 2, and the byte behind it in `content`.

    Raises:
        ModelError: It is damaged, or larger than those of weights are; the message is a clause.
    """
    rewriter, end = _Rewriter(), 0
    operations = pickletools.genops(content[:MOST_BYTES])
    try:
        for (operation, argument, start), (_, _, following) in pairwise(operations):
            end = following or 0
            rewriter.take(operation.name, argument, content[start:end])
    except ModelError:
        raise
    except Exception as error:  # of a damaged pickle, any may come
        raise ModelError(f"it is not a pickle that can be read ({str(error)[:100] or type(error).__name__})") from error
    return bytes(rewriter.written + b"."), end + 1


class _Rewriter:
    """Takes operations in order and writes those of protocol 2.

    Protocol 4 names a class by the two texts on top of the stack, protocol 2 by one operation. So the places of texts that follow
    one another are kept, and a text is written anew wherever it is fetched from the memo.
    """

    def __init__(self) -> None:
        self.written = bytearray()
        self._memo: list[str | None] = []  # the texts in it; None for other objects
        self._texts: list[tuple[str, int]] = []  # those on top of the stack, each with its first byte in what is written
        self._operations = 0

    def take(self, name: str, argument: Any, raw: bytes) -> None:
        """Writes what does the same as one operation."""
        self._operations += 1
        if self._operations > MOST_OPERATIONS or len(self.written) > MOST_BYTES:
            raise ModelError(f"it is larger than files of weights are: {self._operations} operations, {len(self.written)} bytes")
        if name in _GETS:
            name, argument = ("BINUNICODE", self._memo[argument]) if self._memo[argument] is not None else (name, argument)
        if name in _TEXTS:
            self._texts.append((argument, len(self.written)))
            self.written += _text(argument)
        elif name in _PUTS:
            self._put(argument)
        elif name == "STACK_GLOBAL":
            self._name()
        elif name != "FRAME":
            self._texts.clear()
            self.written += _bytes(argument) if name in _BYTES else _REPLACED.get(name, raw)

    def _put(self, place: int | None) -> None:
        if place not in (None, len(self._memo)):
            raise ModelError("it numbers its objects as no pickler does")
        if not self._texts:
            self.written += b"r" + struct.pack("<I", len(self._memo))
        self._memo.append(self._texts[-1][0] if self._texts else None)

    def _name(self) -> None:
        (module, start), (attribute, _) = self._texts[-2:]
        if "\n" in module + attribute:
            raise ModelError(f"it names {module[:50]!r}.{attribute[:50]!r}, which is no name")
        del self.written[start:]
        self._texts.clear()
        self.written += f"c{module}\n{attribute}\n".encode()


def _text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def _bytes(value: bytes) -> bytes:
    """Bytes as protocol 2 writes them: encoded from a text."""
    return b"c_codecs\nencode\n" + _text(bytes(value).decode("latin1")) + _text("latin1") + b"\x86R"
