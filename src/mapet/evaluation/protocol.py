"""A protocol: everything that a figure depends on besides the backbone and the data, with a hash to compare by."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar
from typing import Protocol as Interface

from pydantic import Field

from mapet.checkpoints.address import LoadedBackbone
from mapet.data.source import ImageSource
from mapet.data.sources import absolute_location, open_splits
from mapet.errors import SettingsError, nearest
from mapet.evaluation.classes import check_same_classes
from mapet.evaluation.frozen_backbone import POOLS, Evaluated, FrozenBackbone, check_labels, count_classes
from mapet.evaluation.intervals import describe as describe_gain
from mapet.evaluation.outcomes import Outcomes
from mapet.runtime.run_directory import RunDirectory

METRICS = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "miou": "mIoU"}


@dataclass(frozen=True)
class Metrics:
    """What a protocol found out about one backbone.

    Args:
        values: Name to share, 0 to 1; the protocol's `metric` is among them.
        details: Whatever else is worth keeping, as JSON.
        outcomes: What became of every test image that could be read; without it there is no interval.
    """

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = field(default=None, compare=False)

    @classmethod
    def of(cls, outcomes: Outcomes, details: dict[str, Any]) -> Metrics:
        """Figures that follow from the outcomes alone."""
        return cls(outcomes.metrics(), details, outcomes)


class Evaluable(Interface):
    """What a user names: an `LoadedBackbone`, or what another protocol `takes`."""

    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def run(self) -> RunDirectory | None: ...  # noqa: D102
    @property
    def untrained(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """Base of all protocols; the fields of a subclass are its settings.

    Args:
        pool: How tokens become one vector: "mean" of the patches, "cls" (the class token), or "both" side by side, which is the
            mean alone where a backbone has no class token.
        preset: What these settings are called; no setting itself.

    Attributes:
        metric: The figure that counts, unless the data set has a convention of its own.
        pools: Whether `pool` means anything to it.
        allowed_pools: The values that `pool` may have.
        keeps_model: Whether it trains for long and leaves a model, so that there must be a place to keep it.
        several_processes: Whether the processes of torchrun can share its work.
        takes: What it evaluates, as the user names it, and `takes_a` the same in a word.

    Raises:
        SettingsError: A setting has a value that is not allowed.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    metric: ClassVar[str] = "top1"
    pools: ClassVar[bool] = True
    allowed_pools: ClassVar[tuple[str, ...]] = POOLS
    keeps_model: ClassVar[bool] = False
    several_processes: ClassVar[bool] = False
    takes: ClassVar[type] = LoadedBackbone
    takes_a: ClassVar[str] = "backbone"

    pool: str = "both"
    preset: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise SettingsError(f"There is no pooling '{self.pool}'. {nearest(self.pool, POOLS)} --pool all takes each of them.")
        if self.pool not in self.allowed_pools:
            allowed = " or ".join(self.allowed_pools)
            raise SettingsError(f"The protocol '{self.name}' cannot pool by '{self.pool}'. Allowed: {allowed}.")
        if empty := [item.name for item in fields(self) if getattr(self, item.name) in ((), [])]:
            raise SettingsError(f"{empty[0]} is an empty list. Give at least one value.")

    def describe(self) -> dict[str, Any]:
        """Name, version and every setting."""
        settings = asdict(self)
        for unused in ("preset",) if self.pools else ("preset", "pool"):
            del settings[unused]
        return {"name": self.name, "version": self.version, **settings}

    @property
    def hash(self) -> str:
        """Eight hex digits; figures with the same hash are comparable."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """Name and preset, as the command line takes them."""
        return f"{self.name}:{self.preset}" if self.preset else self.name

    @property
    def with_random(self) -> bool:
        """Whether the same backbone at random initialisation is evaluated too by default: where that costs little."""
        return True

    def stem(self, data: str) -> str:
        """The name under which results on `data` are kept: another protocol or other data, another name."""
        return "-".join([self.name, *([self.pool] if self.pools else []), self.hash, data_digits(data)])

    def open_data(self, location: str) -> tuple[ImageSource, ImageSource]:
        """Training and test images.

        Raises:
            DataError: There are none, or they lack what the protocol needs.
        """
        train, test = open_splits(location)
        check_labels(train)
        check_labels(test)
        check_same_classes(train, test)
        return train, test

    def count_classes(self, train: ImageSource, test: ImageSource) -> int:
        """Number of classes."""
        return count_classes(train, test)

    def follow(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that have to change with those that a user gives, where they are not given themselves."""
        return {}

    def note(self, train_images: int) -> str:
        """What should be known before so many images are learned from; "" for nothing."""
        return ""

    def remark(self, metrics: Metrics, random: Metrics | None) -> str:
        """What should be known beside the figures; "" for nothing."""
        return ""

    def prepare(self, target: Any, title: str, train: ImageSource, test: ImageSource, **work: Any) -> Evaluated:
        """What `evaluate` is given.

        Args:
            target: An instance of `takes`.
            title: "pre-trained", "untrained", or "random": the same at its random initialisation.
            train: Images to learn from.
            test: Images to be tested on.
            work: `device`, `workers` and `unreadable`, as `FrozenBackbone` takes them.
        """
        backbone = target.spec.build() if title == "random" else target.backbone
        return FrozenBackbone(title, backbone, target.spec, train, test, **work)

    @abstractmethod
    def evaluate(self, frozen: Any) -> Metrics:
        """The metrics of one subject, as the method `prepare` makes it."""

    def heading(self, result: Result) -> str:
        """What stands above all results of one command; "" for nothing."""
        return ""

    def line(self, result: Result) -> str:
        """A result of this protocol for people."""
        return result.line()


def data_digits(location: str) -> str:
    """Eight hex digits for the place of images."""
    place = absolute_location(location)
    try:
        encoded = place.encode(errors="surrogateescape")  # file names need not be UTF-8
    except UnicodeEncodeError:  # no file has such a name, but a damaged record may
        encoded = place.encode(errors="surrogatepass")
    return hashlib.sha256(encoded).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures and what they mean.

    Args:
        protocol: As described by `Protocol.describe`.
        preset: What the protocol's settings are called; "" if nothing.
        protocol_hash: To compare by.
        backbone: The evaluated backbone.
        data: Where the images are.
        classes: Number of classes.
        train_images: Labelled images that could be learned from: those that could be read.
        test_images: Number of test images.
        metric: The figure that counts.
        figures: Name to share, 0 to 1.
        random_figures: The same for this backbone at its random initialisation; None where that was not evaluated.
        gain_intervals: Of every figure, the 95 % interval [low, high] of figure - random figure, paired over the same test images.
        seconds: Wall time of everything.
        details: Whatever else the protocol found.
    """

    protocol: dict[str, Any]
    protocol_hash: str
    data: str
    classes: int
    train_images: int
    test_images: int
    figures: dict[str, float]
    seconds: float
    random_figures: dict[str, float] | None = None
    metric: str = "top1"
    preset: str = ""
    backbone: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    gain_intervals: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = field(default_factory=dict)

    @property
    def pool(self) -> str | None:
        """How tokens became one vector; None where there was nothing to choose."""
        pool = self.details.get("pool", self.protocol.get("pool"))
        return None if pool is None else str(pool)

    @property
    def gain(self) -> float | None:
        """The figure that counts, less the same at random initialisation."""
        return None if self.random_value is None else self.value - self.random_value

    @property
    def gain_interval(self) -> list[float] | None:
        """[low, high] of the gain; None where it is not known."""
        return self.gain_intervals.get(self.metric)

    @property
    def value(self) -> float:
        """The figure that counts, 0 to 1."""
        return self.figures[self.metric]

    @property
    def random_value(self) -> float | None:
        """The same at random initialisation."""
        return None if self.random_figures is None else self.random_figures[self.metric]

    def line(self) -> str:
        """The figure for people: against random initialisation, with the hash of its protocol."""
        words = ", ".join(filter(None, (self.preset, self.pool)))
        title = f"{self.protocol['name']} ({words})"
        metric = METRICS.get(self.metric, self.metric)
        gain = self._floor()
        if self.random_value is not None and self.gain is not None:
            points = describe_gain(self.gain, self.gain_interval)
            gain += f"random initialisation {100 * self.random_value:5.1f} %   gain {points}   "
        return f"{title:24} {metric} {100 * self.value:5.1f} %   {gain}protocol {self.protocol_hash}   {self.seconds:.0f} s"

    def _floor(self) -> str:
        """The result of always predicting the most frequent class, where the protocol has it."""
        frequent = self.details.get("most_frequent_class", {})
        return f"'{frequent['name']}' everywhere {100 * frequent[self.metric]:5.1f} %   " if self.metric in frequent else ""
