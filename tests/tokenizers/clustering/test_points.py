from __future__ import annotations

import numpy as np
import pytest
import torch

from mapet.errors import TokenizerError
from mapet.tokenizers.clustering import points as module
from mapet.tokenizers.clustering.points import StoredPoints, TensorPoints, as_points, blocks, fingerprint, placed

CPU = torch.device("cpu")
VALUES = np.random.default_rng(0).normal(size=(1000, 7))


@pytest.fixture(params=[np.float16, np.float32])
def stored(request, tmp_path) -> tuple[StoredPoints, torch.Tensor]:
    """Points in a file, and what they are."""
    values = VALUES.astype(request.param)
    np.save(tmp_path / "points.npy", values)
    return StoredPoints(tmp_path / "points.npy"), torch.from_numpy(values)


def test_stored_points_are_those_in_the_file(stored):
    points, values = stored
    assert (points.num_points, points.dim, points.dtype) == (1000, 7, values.dtype)
    assert torch.equal(points.read(slice(0, 1000)), values)
    assert torch.equal(points.read(slice(990, 2000)), values[990:])
    assert points.read(slice(5, 5)).shape == (0, 7)
    chosen = torch.tensor([0, 3, 998, 999])
    assert torch.equal(points.gather_rows(chosen), values[chosen])
    assert points.gather_rows(chosen[:0]).shape == (0, 7)


def test_blocks_are_all_points_in_order(stored, monkeypatch):
    points, values = stored
    monkeypatch.setitem(module.BLOCK_VALUES, "cpu", 7 * 64)
    for source in (points, TensorPoints(values)):
        found = list(blocks(source, CPU))
        assert [len(block) for block in found] == [64] * 15 + [40]
        assert torch.equal(torch.cat(found), values)


def test_a_reader_that_stops_early_ends_the_thread(stored, monkeypatch):
    monkeypatch.setitem(module.BLOCK_VALUES, "cpu", 7)
    some = blocks(stored[0], CPU)
    next(some)
    some.close()


def test_memory_decides_whether_a_file_is_loaded(stored):
    points, values = stored
    size = values.numel() * values.element_size()
    assert placed(points, CPU, None) is points
    assert placed(points, CPU, size - 1) is points
    loaded = placed(points, CPU, size)
    assert loaded.resident == CPU
    assert loaded.dtype == values.dtype
    assert torch.equal(loaded.read(slice(0, 1000)), values)


def test_tensors_stay_where_they_are():
    tensor = torch.rand(10, 3)
    points = as_points(tensor)
    assert as_points(points) is points
    assert placed(points, CPU, 1) is points
    assert points.read(slice(2, 5)).data_ptr() == tensor[2].data_ptr()


def test_an_empty_shard():
    empty = TensorPoints(torch.empty(0, 4))
    assert list(blocks(empty, CPU)) == []
    assert isinstance(fingerprint(empty), int)


def test_fingerprints_tell_points_apart(stored):
    points, values = stored
    assert fingerprint(points) == fingerprint(TensorPoints(values))
    other = values.clone()
    other[0, 0] += 1
    different = [
        other,
        values[:999],
        values[:, :6],
        values.double().to(torch.float32 if values.dtype == torch.float16 else torch.float16),
    ]
    assert len({fingerprint(TensorPoints(some)) for some in [values, *different]}) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (VALUES, r"float64 of shape \(1000, 7\) in C order. Allowed: \(points, dimensions\) in float16 or float32"),
        (VALUES.astype(np.float32).T, "in Fortran order"),
        (VALUES.astype(np.float32)[0], r"shape \(7,\)"),
        (np.array([{"a": 1}] * 3), "holds object"),
    ],
)
def test_other_arrays_are_refused(tmp_path, values, message):
    np.save(tmp_path / "points.npy", values)
    with pytest.raises(TokenizerError, match=message):
        StoredPoints(tmp_path / "points.npy")


def test_a_truncated_file_is_refused(stored):
    path = stored[0].path
    whole = path.read_bytes()
    for cut in (1, 5000):
        path.write_bytes(whole[:-cut])
        with pytest.raises(
            TokenizerError, match=f"has {len(whole) - cut} bytes where 1000 points of 7 .* take {len(whole)}: it is cut off"
        ):
            StoredPoints(path)
    path.write_bytes(whole[:4])
    with pytest.raises(TokenizerError, match=r"cannot be read as a \.npy file"):
        StoredPoints(path)


def test_a_file_that_is_cut_off_while_it_is_read(stored):
    points = stored[0]
    points.path.write_bytes(points.path.read_bytes()[:-50])
    with pytest.raises(TokenizerError, match="cut off while k-means was reading it"):
        list(blocks(points, CPU))


def test_a_missing_file(tmp_path):
    with pytest.raises(TokenizerError, match="No such file"):
        StoredPoints(tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.bfloat16)]
)
def test_other_tensors_are_refused(tensor):
    with pytest.raises(TokenizerError, match=r"shape \(n, d\) in float32 or float16"):
        TensorPoints(tensor)
