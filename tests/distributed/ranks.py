"""Several processes as torchrun starts them, for tests: `run_ranks("package.module:function", world, folder)`.

They are forked from one fresh Python that has imported what they need, since importing takes longer than what is tested.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.command import environment

_FORKS = multiprocessing.get_context("forkserver")
_SECONDS = 110


def run_ranks(function: str, world: int, folder: Path, killed: int = 0) -> list[Any]:
    """What `function(folder)` returned in each of `world` connected processes; it must be fit for JSON.

    Args:
        function: Its module and name.
        world: Number of processes.
        folder: What it is called with.
        killed: How many processes are expected to be killed; None is returned for each.
    """
    with started_ranks(function, world, folder, killed) as results:
        return results()


@contextmanager
def started_ranks(function: str, world: int, folder: Path, killed: int = 0) -> Iterator[Callable[[], list[Any]]]:
    """The same in two parts, for starts that wait for something at the same time: what is given waits for the results."""
    with reserved_port() as port:
        processes = [forked(run_rank, function, rank, world, port, folder) for rank in range(world)]

        def results() -> list[Any]:
            _wait_for(processes, killed, folder)
            paths = [folder / f"rank-{rank}.json" for rank in range(world)]
            return [json.loads(path.read_text()) if path.exists() else None for path in paths]

        yield results


def _wait_for(processes: list[ForkServerProcess], killed: int, folder: Path) -> None:
    """Returns when all have ended well, but `killed` of them; raises AssertionError with what they left in `folder` otherwise."""
    deadline, waiting = time.monotonic() + _SECONDS, {process.sentinel: process for process in processes}
    while waiting:
        ended = [waiting.pop(sentinel) for sentinel in connection.wait([*waiting], deadline - time.monotonic())]
        for process in ended:
            process.join()
        codes = [process.exitcode for process in ended if process.exitcode]
        if killed and codes == [-signal.SIGKILL]:
            killed, codes = killed - 1, []
        if codes or not ended:
            for process in waiting.values():  # they would wait for the one that died
                process.kill()
            words = [path.read_text() for path in folder.glob("rank-*.txt")]
            raise AssertionError("\n".join([f"A process ended with {codes[0]}." if codes else "They did not end.", *words]))


def forked(function: Any, *arguments: Any) -> ForkServerProcess:
    """A started process that imports nothing again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        _FORKS.set_forkserver_preload(["tests.distributed.preloaded"])
        forkserver.ensure_running()
    process = _FORKS.Process(target=function, args=arguments)
    process.start()
    return process


def run_code(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What `python -c CODE` does in the folder `cwd` and a session of its own, with what `preloaded` imports already imported."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = forked(_run_code, code, cwd, streams)
        process.join(_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        return subprocess.CompletedProcess(code, process.exitcode or 0, *(path.read_text() for path in streams))


def _run_code(code: str, cwd: Path, streams: list[Path]) -> None:
    os.setsid()
    os.chdir(cwd)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    multiprocessing.set_start_method(None, force=True)  # a forked process has that of its server, which would import all again
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port for the processes to meet at, which no other call gets until the block ends, in no other process either.

    It lies below those that the system gives to connections. With SO_REUSEADDR the processes may listen where this socket, which
    does not listen, is bound; a socket without that option, as the next call makes it, finds the port taken.
    """
    with socket.socket() as holder:
        port = next(port for port in range(20_000, 32_000) if _takes(holder, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield port


def _takes(holder: socket.socket, port: int) -> bool:
    with suppress(OSError):
        holder.bind(("", port))
        return True
    return False


def run_rank(function: str, rank: int, world: int, port: int, folder: Path) -> None:
    """In its process: writes what the function returned, or its traceback."""
    warnings.simplefilter("error")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    module, _, name = function.partition(":")
    stacks = (folder / f"rank-{rank}.txt").open("w")
    faulthandler.dump_traceback_later(_SECONDS - 10, file=stacks)  # of a process that hangs
    try:
        result = getattr(importlib.import_module(module), name)(folder)
        (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    except BaseException:
        (folder / f"rank-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
