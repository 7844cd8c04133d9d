"""TensorBoard events that are on disk as soon as they are written."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from mapet.runtime.files import storage_errors


class EventFile:
    """Scalars for TensorBoard, on disk when `add` returns.

    PyTorch's SummaryWriter keeps them in a thread for up to two minutes: they are lost when the process is killed, and a full disk
    ends in a traceback of a library.

    Args:
        folder: TensorBoard's log directory.
        purge_from: Events of this step and later ones in older files of the folder are withdrawn.
    """

    def __init__(self, folder: Path, purge_from: int) -> None:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=purge_from, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Adds one value for each name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items() if name != "step"]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with storage_errors(self.path), self.path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
