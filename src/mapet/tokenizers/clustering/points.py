"""What k-means reads: points in memory or in a file, block by block, so that memory stays bounded whatever their number."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mapet.errors import TokenizerError
from mapet.runtime.regular import open_regular

DTYPES = (torch.float16, torch.float32)
# Values of one block: small beside what is clustered, large enough to keep a disk or a GPU busy.
BLOCK_VALUES = {"cpu": 2**21, "cuda": 2**28}
# Blocks that are read ahead while one is worked on.
READ_AHEAD = 2
# Number of points in `fingerprint`.
FINGERPRINT_POINTS = 256
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Points(Protocol):
    """Points to cluster: `num_points` rows of `dim` values in `dtype`, float16 or float32.

    `resident` is the device in whose memory they lie; None where every read fetches them from elsewhere.
    """

    num_points: int
    dim: int
    dtype: torch.dtype
    resident: torch.device | None

    def read(self, rows: slice, pinned: bool = False) -> Tensor:
        """Consecutive points (n, dim); `pinned` uses memory that a GPU can copy from on its own."""
        ...

    def gather_rows(self, indices: Tensor) -> Tensor:
        """The points (n, dim) at increasing `indices` (n,)."""
        ...


class TensorPoints:
    """Points in memory.

    Args:
        tensor: (n, d) float16 or float32, on any device.

    Raises:
        TokenizerError: Another shape or type.
    """

    def __init__(self, tensor: Tensor) -> None:
        if tensor.ndim != 2 or tensor.dtype not in DTYPES:
            raise TokenizerError(
                f"k-means takes points of shape (n, d) in float32 or float16, not {tuple(tensor.shape)} in {tensor.dtype}."
            )
        self._tensor = tensor
        self.num_points, self.dim = tensor.shape
        self.dtype = tensor.dtype
        self.resident: torch.device | None = tensor.device

    def read(self, rows: slice, pinned: bool = False) -> Tensor:
        """Consecutive points, not copied unless `pinned`."""
        return self._tensor[rows].pin_memory() if pinned else self._tensor[rows]

    def gather_rows(self, indices: Tensor) -> Tensor:
        """Some of the points."""
        return self._tensor[indices.to(self._tensor.device)]


class StoredPoints:
    """Points in a .npy file, read on demand: nothing is mapped or kept.

    Args:
        path: A two-dimensional array in C order, float16 or float32.

    Raises:
        TokenizerError: The file is missing, cut off, or holds something else.
    """

    resident: torch.device | None = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        shape, self.dtype, self._offset = self._header()
        self.num_points, self.dim = shape
        self._row_bytes = self.dim * self.dtype.itemsize
        expected, actual = self._offset + self.num_points * self._row_bytes, self.path.stat().st_size
        if actual != expected:
            raise TokenizerError(
                f"{self.path} has {actual} bytes where {self.num_points} points of {self.dim} values in {self.dtype} take "
                f"{expected}: it is cut off or damaged. Remove it and extract the features again."
            )

    def read(self, rows: slice, pinned: bool = False) -> Tensor:
        """Consecutive points from the disk."""
        start, stop, _ = rows.indices(self.num_points)
        block = torch.empty(max(stop - start, 0), self.dim, dtype=self.dtype, pin_memory=pinned)
        with open_regular(self.path) as file:
            self._fill(block, file, start)
        return block

    def gather_rows(self, indices: Tensor) -> Tensor:
        """Some of the points, each read on its own."""
        rows = torch.empty(len(indices), self.dim, dtype=self.dtype)
        with open_regular(self.path) as file:
            for row, index in zip(rows, indices.tolist(), strict=True):
                self._fill(row, file, index)
        return rows

    def _header(self) -> tuple[tuple[int, int], torch.dtype, int]:
        """Shape, type, and where the values begin."""
        try:
            with BufferedReader(open_regular(self.path)) as file:
                shape, columns_first, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
                offset = file.tell()
        except (OSError, ValueError, KeyError) as error:
            raise TokenizerError(f"{self.path} cannot be read as a .npy file of points: {error}.") from None
        kinds = {np.dtype(np.float16): torch.float16, np.dtype(np.float32): torch.float32}
        if len(shape) != 2 or columns_first or dtype not in kinds:
            order = "Fortran" if columns_first else "C"
            raise TokenizerError(
                f"{self.path} holds {dtype} of shape {shape} in {order} order. Allowed: (points, dimensions) in float16 or "
                "float32, in C order, as numpy.save writes them."
            )
        return (shape[0], shape[1]), kinds[dtype], offset

    def _fill(self, rows: Tensor, file: FileIO, first: int) -> None:
        """Reads into the contiguous `rows`, from point `first` on."""
        file.seek(self._offset + first * self._row_bytes)
        remaining = rows.numpy().reshape(-1).view(np.uint8)
        while len(remaining):
            count = file.readinto(remaining)  # pyright: ignore[reportArgumentType]  (numpy's stubs lack the buffer protocol)
            if not count:
                raise TokenizerError(f"{self.path} ends at byte {file.tell()}: it was cut off while k-means was reading it.")
            remaining = remaining[count:]


def as_points(points: Tensor | Points) -> Points:
    """`points` in the form that k-means reads."""
    return TensorPoints(points) if isinstance(points, Tensor) else points


def placed(points: Points, device: torch.device, memory: int | None) -> Points:
    """`points` where repeated passes over them cost least.

    On the GPU where they take at most half of what is free there; else in main memory if they lie in a file and take at most
    `memory` bytes; else where they are.
    """
    size = points.num_points * points.dim * points.dtype.itemsize
    if device.type == "cuda" and points.resident != device:
        target = device if size <= torch.cuda.mem_get_info(device)[0] // 2 else None
    else:
        target = points.resident
    if target is None and points.resident is None and memory is not None and size <= memory:
        target = torch.device("cpu")
    if target is None or target == points.resident:
        return points
    loaded, filled = torch.empty(points.num_points, points.dim, dtype=points.dtype, device=target), 0
    for block in blocks(points, target):
        loaded[filled : filled + len(block)] = block
        filled += len(block)
    return TensorPoints(loaded)


def blocks(points: Points, device: torch.device) -> Iterator[Tensor]:
    """All points in order, in blocks (n, dim) on `device`; blocks from elsewhere are read by another thread, ahead of their use."""
    rows = max(1, BLOCK_VALUES.get(device.type, BLOCK_VALUES["cuda"]) // max(points.dim, 1))
    slices = [slice(start, min(start + rows, points.num_points)) for start in range(0, points.num_points, rows)]
    if points.resident == device:
        yield from (points.read(part) for part in slices)
        return
    pinned = device.type == "cuda"
    with ThreadPoolExecutor(1, "k-means reader") as reader:
        ahead: deque[Future[Tensor]] = deque()
        for part in slices:
            ahead.append(reader.submit(points.read, part, pinned))
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft().result().to(device, non_blocking=True)
        while ahead:
            yield ahead.popleft().result().to(device, non_blocking=True)


def fingerprint(points: Points) -> int:
    """A number that other points have only by accident: of their shape, type, and some of them, evenly spread."""
    count = min(points.num_points, FINGERPRINT_POINTS)
    sample = points.gather_rows(torch.arange(count) * points.num_points // max(count, 1)).cpu()
    digest = hashlib.sha256(f"{points.num_points} {points.dim} {points.dtype}".encode())
    digest.update(sample.contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "little")
