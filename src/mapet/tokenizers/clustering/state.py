"""How far a k-means has come, in one file, so that it continues after `kill -9` with the same bits.

The file is a safetensors file: the current and the best centroids, and in its metadata the job that it belongs to and the counts.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from mapet.errors import TokenizerError
from mapet.runtime.files import atomic_file
from mapet.runtime.processes import broadcast_, gather_numbers, this_process
from mapet.runtime.regular import read_regular
from mapet.runtime.tensors import digest, write_tensors

# A state is written after an iteration if none was for so long, and after every restart.
_MOST_BYTES = 2**40
SECONDS_BETWEEN_STATES = 30.0


@dataclass
class State:
    """Where a k-means stands.

    Args:
        restart: The restart that is under way; as many as there are when all are done.
        moves: How often its centroids moved.
        settled: Whether the last move was small enough to be the last.
        history: Its inertia before each move.
        centroids: (k, d) less the origin of the points; None before its start.
        best: The centroids of the best restart so far.
        best_history: Its inertia before each move and after the last.
    """

    restart: int = 0
    moves: int = 0
    settled: bool = False
    history: list[float] = field(default_factory=list)
    centroids: Tensor | None = None
    best: Tensor | None = None
    best_history: list[float] = field(default_factory=list)

    def end_restart(self) -> None:
        """Keeps what the restart found if it is the best so far, and turns to the next one."""
        if self.best is None or self.history[-1] < self.best_history[-1]:
            self.best, self.best_history = self.centroids, self.history
        self.restart, self.moves, self.settled, self.history, self.centroids = self.restart + 1, 0, False, [], None


class StateFile:
    """Keeps the state of one job.

    Args:
        path: The file; None keeps nothing.
        job: What the result depends on; a state of another job is refused.
        sharded: Whether all processes work on the job together; then only the first one reads and writes.
    """

    def __init__(self, path: str | Path | None, job: dict[str, Any], sharded: bool) -> None:
        self._path = None if path is None else Path(path)
        self._job, self._sharded = job, sharded
        self._written = time.monotonic()

    def load(self, device: torch.device) -> State:
        """The state to continue from, on `device`; a new one where there is no file.

        Raises:
            TokenizerError: The file is damaged or belongs to another job.
        """
        content = self._read()
        if not content:
            return State()
        try:
            tensors = load_tensors(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            record = json.loads(header["__metadata__"]["k-means"])
            if header["__metadata__"].get("sha256") not in (None, digest(tensors)):  # files of earlier releases have none
                raise ValueError("its content is not what was written")
            self._refuse_others(record["job"])
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise TokenizerError(
                f"{self._path} is damaged, or no state of a k-means ({error}). Remove it to start the clustering again."
            ) from None
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        return State(**record["state"], centroids=here.get("centroids"), best=here.get("best"))

    def save(self, state: State, now: bool = False) -> None:
        """Writes the state if none was written for a while, or `now`.

        Raises:
            StorageError: The disk is full or not writable; the state before is untouched.
        """
        if self._path is None or not (now or time.monotonic() - self._written >= SECONDS_BETWEEN_STATES):
            return
        self._written = time.monotonic()
        if self._sharded and this_process().rank:
            return
        counts = {name: getattr(state, name) for name in ("restart", "moves", "settled", "history", "best_history")}
        tensors = {name: getattr(state, name) for name in ("centroids", "best") if getattr(state, name) is not None}
        metadata = {"k-means": json.dumps({"job": self._job, "state": counts}), "sha256": digest(tensors)}
        with atomic_file(self._path) as partial:
            write_tensors(partial, tensors, metadata)

    def _refuse_others(self, job: dict[str, Any]) -> None:
        names = [name for name in {**self._job, **job} if job.get(name) != self._job.get(name)]
        if names:
            differences = "; ".join(f"{name} {job.get(name)} there, {self._job.get(name)} here" for name in names)
            raise TokenizerError(f"{self._path} belongs to another clustering: {differences}. Remove it, or give another place.")

    def _read(self) -> bytes:
        """The file's content, in all processes that need it."""
        reads = self._path is not None and self._path.is_file() and not (self._sharded and this_process().rank)
        content = read_regular(self._path, _MOST_BYTES) if reads and self._path else b""
        length = gather_numbers(len(content))[0] if self._sharded else 0
        if not length:
            return content
        received = torch.frombuffer(bytearray(content or bytes(length)), dtype=torch.uint8)
        return broadcast_(received).numpy().tobytes()
