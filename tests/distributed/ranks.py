"""Several processes as torchrun starts them, for tests: `run_ranks("package.module:function", world, folder)`.

A fresh Python imports the function once and forks, since importing takes longer than what is tested.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.command import ROOT, environment


def run_ranks(function: str, world: int, folder: Path) -> list[Any]:
    """What `function(folder)` returned in each of `world` connected processes; it must be fit for JSON."""
    command = [sys.executable, "-W", "error", "-m", "tests.distributed.ranks", function, str(world), str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def free_port() -> int:
    """One below those that the system gives to connections, so that none takes it before the processes meet there."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("No port from 20000 to 32000 is free.")


def fork(function: str, rank: int, world: int, port: int, folder: Path) -> int:
    """Starts one process; returns its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        module, _, name = function.partition(":")
        result = getattr(importlib.import_module(module), name)(folder)
        (folder / f"rank-{rank}.json").write_text(json.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(function: str, world: int, folder: Path) -> None:
    importlib.import_module(function.partition(":")[0])
    port = free_port()
    processes = [fork(function, rank, world, port, folder) for rank in range(world)]
    for _ in range(world):
        ended, status = os.wait()
        processes.remove(ended)
        if status:
            for process in processes:  # they would wait for the one that died
                os.kill(process, signal.SIGKILL)
            sys.exit(f"A process ended with {os.waitstatus_to_exitcode(status)}.")
    print(json.dumps([json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
