"""How tests start several processes."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist

from tests.distributed.ranks import reserved_port


def test_a_port_is_reserved_until_the_processes_meet_there_and_after() -> None:
    """Two starts at one port wait for each other's processes: this hung when two workers ran these tests at the same time."""
    with reserved_port() as first, reserved_port() as second:
        assert first != second
        store = dist.TCPStore("127.0.0.1", first, 1, True, timedelta(seconds=20))  # pyright: ignore[reportPrivateImportUsage]
        with reserved_port() as third:
            assert third not in (first, second)
        store.set("key", "value")
        with socket.create_connection(("127.0.0.1", first), 5):
            assert store.get("key") == b"value"
