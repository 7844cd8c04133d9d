"""Sharded tensors on disk, by torch.distributed.checkpoint: every process writes its part of each.

The files are safetensors. The library's own format has an index that is a pickle, which a stranger's folder must not bring.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from mapet.engine.parallel import is_sharded
from mapet.errors import CheckpointError
from mapet.runtime.files import storage_errors
from mapet.runtime.processes import gather_texts
from mapet.runtime.tensors import open_tensors


def save_shards(folder: Path | None, tensors: Mapping[str, Tensor]) -> bool:
    """Writes `tensors` where one of them is sharded; every process calls this.

    Args:
        folder: The target, in the first process; None in the others.
        tensors: By name; those that are not sharded are written once.

    Returns:
        Whether anything was sharded and written.

    Raises:
        StorageError: The disk of one of them is full or not writable.
    """
    if not any(map(is_sharded, tensors.values())):
        return False
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    path = Path(gather_texts([] if folder is None else [str(folder)])[0])
    with storage_errors(path), _quietly():
        try:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
        except CheckpointException as error:
            rank, (reason, _) = next(iter(error.failures.items()))
            raise OSError(f"process {rank}: {reason}") from reason
    return True


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors`, sharded or not, from the files of `folder`, sharded in whatever way or not; every process calls this.

    Raises:
        CheckpointError: A tensor is absent or of another shape, or the files are damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with _quietly():
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())
    except (Exception, CheckpointException) as error:  # the library has no error of its own for damaged files
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise CheckpointError(f"The tensors in {folder} do not fit this training: {reason}") from error


def names_in_file(path: Path) -> set[str]:
    """The names of all tensors in a safetensors file."""
    with open_tensors(path) as tensors:
        return {*tensors.keys()}


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's remarks on one process and on its own steps."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
