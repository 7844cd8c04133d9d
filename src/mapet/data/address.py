"""What a user writes for DATA: a place, and behind it how it is read: `photos#split=test,class-depth=2`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mapet.errors import DataError

_OPTION = r"(?:split=[\w. -]+|class-depth=\d+)"
_FORM = re.compile(rf"(?P<place>.*?)#(?P<options>{_OPTION}(?:,{_OPTION})*)", re.DOTALL)
MOST_DEPTH = 20


@dataclass(frozen=True)
class DataAddress:
    """A place and how it is read; `str` gives the location that was parsed.

    Args:
        place: A folder, a file, a pattern or a name.
        split: The part that is evaluated on, by its name; by default val, else test.
        class_depth: How many levels below the folder the class folders lie; by default 1.

    Raises:
        DataError: A class depth that cannot be.
    """

    place: str
    split: str | None = None
    class_depth: int | None = None

    def __post_init__(self) -> None:
        if self.class_depth is not None and not 1 <= self.class_depth <= MOST_DEPTH:
            raise DataError(f"The class depth is {self.class_depth}; allowed: 1 (folders directly below) to {MOST_DEPTH}.")

    @classmethod
    def parse(cls, location: str | Path) -> DataAddress:
        """Reads `PLACE#split=NAME,class-depth=N`, where either may be missing."""
        match = _FORM.fullmatch(str(location))
        if match is None:
            return cls(str(location))
        options = dict(option.split("=", 1) for option in match["options"].split(","))
        depth = options.get("class-depth")
        return cls(match["place"], options.get("split"), None if depth is None else int(depth[:9]))

    def __str__(self) -> str:
        options = [
            *([f"split={self.split}"] if self.split is not None else []),
            *([f"class-depth={self.class_depth}"] if self.class_depth is not None else []),
        ]
        return f"{self.place}#{','.join(options)}" if options else self.place


def with_options(location: str, split: str | None, class_depth: int | None) -> str:
    """`location` with what the command line adds to it.

    Raises:
        DataError: A value that no split and no depth can have.
    """
    address = DataAddress.parse(location)
    if split is not None and not re.fullmatch(r"[\w. -]+", split):
        raise DataError(f"'{split}' is no name of a split. Give a name such as val or test.")
    return str(DataAddress(address.place, address.split if split is None else split, class_depth or address.class_depth))
