"""Text that may be shown on a terminal; a module without imports that take time, as every command begins with it."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from typing import TextIO


def printable(text: str) -> str:
    """`text` as it may be shown on a terminal: control characters, and what is no UTF-8, as backslash escapes.

    A file name may hold escape sequences that move the cursor, rename the window or turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(ascii(one)[1:-1] if _is_unshown(one) else one for one in text)


def on_one_line(name: object) -> str:
    """A name for the middle of a message: it may hold line ends, and forge a line of mapet's with them."""
    return str(name).replace("\n", "\\n").replace("\t", "\\t")


def few(names: Iterable[object], most: int = 5) -> str:
    """The first of some names, for the middle of a message."""
    listed = [on_one_line(name) for name in names]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _is_unshown(one: str) -> bool:
    return one not in "\n\t" and (unicodedata.category(one) in _UNSHOWN or one in _TURNING)


# Control characters, surrogates, what ends a line elsewhere; and what turns the direction of writing.
_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class PrintableText:
    """A text stream whose control characters are escaped; rich takes it for a file and writes no escape sequences.

    Args:
        stream: Where it goes; None, as `sys.stdout` is where it was closed, drops it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.StringIO() if stream is None else stream

    def write(self, text: str) -> int:
        """Writes `text`, escaped."""
        self._stream.write(printable(text))
        return len(text)

    def isatty(self) -> bool:
        """False: nothing that needs escape sequences belongs here."""
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
