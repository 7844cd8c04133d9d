"""A protocol: everything that a figure depends on besides the backbone and the data, with a hash to compare by."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from mapet.errors import SettingsError, nearest
from mapet.evaluation.subject import POOLS, Subject


@dataclass(frozen=True)
class Protocol(ABC):
    """Base of all protocols; the fields of a subclass are its settings.

    Args:
        pool: How patch tokens become one vector: "mean" of the patches, "cls", or "both" side by side.

    Raises:
        SettingsError: A setting has a value that is not allowed.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    pool: str = "mean"

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise SettingsError(f"There is no pooling '{self.pool}'. {nearest(self.pool, POOLS)}")

    def describe(self) -> dict[str, Any]:
        """Name, version and every setting."""
        return {"name": self.name, "version": self.version, **asdict(self)}

    @abstractmethod
    def accuracy(self, subject: Subject) -> float:
        """Share of the subject's test images whose class is found, 0 to 1."""

    @property
    def hash(self) -> str:
        """Eight hex digits; figures with the same hash are comparable."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Result:
    """A figure and what it means.

    Args:
        protocol: As described by `Protocol.describe`.
        protocol_hash: To compare by.
        data: Where the images are.
        classes: Number of classes.
        train_images: Labelled images that were learned from.
        test_images: Images that were judged.
        top1: Share of test images whose class was found, 0 to 1.
        random_top1: The same for this backbone at its random initialisation.
        seconds: Wall time of both.
        details: Whatever else the protocol found.
    """

    protocol: dict[str, Any]
    protocol_hash: str
    data: str
    classes: int
    train_images: int
    test_images: int
    top1: float
    random_top1: float
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Under which the result is kept in a run directory: another protocol or other data, another file."""
        data = hashlib.sha256(self.data.encode(errors="surrogateescape")).hexdigest()[:8]
        return f"{self.protocol['name']}-{self.protocol['pool']}-{self.protocol_hash}-{data}.json"

    def line(self) -> str:
        """The figure for people: against random initialisation, with the hash of its protocol."""
        name, pool, preset = (self.protocol.get(key) for key in ("name", "pool", "preset"))
        title = f"{name} ({preset + ', ' if preset else ''}{pool})"
        gain = 100 * (self.top1 - self.random_top1)
        return (
            f"{title:24} top-1 {100 * self.top1:5.1f} %   random initialisation {100 * self.random_top1:5.1f} %   "
            f"gain {gain:+5.1f}   protocol {self.protocol_hash}   {self.seconds:.0f} s"
        )
