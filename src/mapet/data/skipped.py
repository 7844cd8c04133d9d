"""Going through images once: what cannot be read is counted and named, and a bar moves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from mapet.data.batch import LoadedBatch, UnreadableImage
from mapet.data.source import ImageSource
from mapet.errors import DataError
from mapet.runtime.processes import gather_texts
from mapet.runtime.progress import progress

_NAMED = 5


class UnreadableImages:
    """Counts and names what was skipped; every image once, however often it comes by.

    Args:
        limit: How many may be skipped: the user's --max-unreadable.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.images: list[UnreadableImage] = []
        self._seen: set[str] = set()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """The paths or rows of the skipped images."""
        return [image.description for image in self.images]

    def among(self, source: ImageSource) -> int:
        """How many images of `source` are among them; one that `source` names twice is two."""
        names = {*self.names}
        return sum(source.describe(index) in names for index in range(len(source))) if names else 0

    def record(self, images: Iterable[UnreadableImage], seen: str = "") -> None:
        """Adds `images`.

        Args:
            images: That cannot be read.
            seen: How many images of which part were read until now, in words; "" where no more follow.

        Raises:
            DataError: There are more than `limit`.
        """
        for image in images:
            if image.description not in self._seen:
                self._seen.add(image.description)
                self.images.append(image)
        if len(self) > self.limit:
            raise DataError(
                f"{self._count()} cannot be read, {self.limit} may be skipped:\n{self._listing()}\n"
                f"Repair or remove them, or skip up to N of them with --max-unreadable N."
                + (f"\nOnly {seen} were read; there may be more in the rest, and in other parts." if seen else "")
            )

    def record_in_all(self, images: Iterable[UnreadableImage]) -> None:
        """Adds what any process could not read, in all of them, so that all stop together where it is too much."""
        texts = gather_texts([json.dumps(asdict(image)) for image in images])
        self.record([UnreadableImage(**json.loads(text)) for text in texts])

    def summary(self) -> str:
        """For the end of a run: how many were skipped and which; "" if none."""
        return f"{self._count()} skipped as unreadable:\n{self._listing()}" if self.images else ""

    def _count(self) -> str:
        return f"{len(self)} image" + ("s" if len(self) > 1 else "")

    def _listing(self) -> str:
        lines = [f"  {image.description}: {image.reason}" for image in self.images[:_NAMED]]
        more = len(self) - _NAMED
        return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)


def walk(
    title: str,
    batches: Iterable[LoadedBatch],
    images: int,
    unreadable: UnreadableImages,
    *,
    part: str = "",
    done: int = 0,
    after: float = 0.0,
) -> Iterator[LoadedBatch]:
    """Yields `batches`, records what could not be read of each before that, and moves a bar behind it.

    Args:
        title: Of the bar.
        batches: For example of `make_loader`.
        images: How many they show, those included that were done before.
        unreadable: Counts and names what is skipped.
        part: What to call the images where others follow in another call: "training images".
        done: Images that were done before.
        after: Seconds after which the bar is shown, where all may be over sooner.

    Raises:
        DataError: There are more unreadable images than may be skipped.
    """
    began = time.monotonic()
    with progress(title, images, done, after) as bar:
        for batch in batches:
            seen = bar.done + len(batch.keys) + len(batch.unreadable)
            unreadable.record(batch.unreadable, f"{seen:,} of {images:,} {part}" if part else "")
            yield batch
            bar.advance(seen - bar.done)
            bar.note(f"{(bar.done - done) / max(time.monotonic() - began, 1e-9):,.0f} images/s")
