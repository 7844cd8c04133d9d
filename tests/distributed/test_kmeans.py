"""k-means over several processes finds what one process finds on all points; so does one that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mapet.runtime.processes import Processes
from tests.distributed.kmeans_on_ranks import CASES, cluster
from tests.distributed.ranks import run_ranks

MODULE = "tests.distributed.kmeans_on_ranks"


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory) -> tuple[int, Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    return request.param, folder, run_ranks(f"{MODULE}:cluster_all", request.param, folder)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in ("centroids", "counts", "history"))


@pytest.mark.parametrize("name", CASES)
def test_several_processes_find_what_one_finds(ranks, name):
    world, folder, _ = ranks
    found = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(world)]
    for other in found[1:]:
        assert_same(found[0], other)
    alone = cluster(name, Processes())
    torch.testing.assert_close(found[0]["centroids"], alone.centroids, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[0]["counts"], alone.counts)
    assert found[0]["history"].tolist() == pytest.approx(alone.history, rel=1e-6)


def test_shards_in_files(ranks):
    world, folder, _ = ranks
    stored, plain = (load_file(folder / f"{name}-{world - 1}.safetensors") for name in ("stored", "k-means++"))
    assert_same(stored, plain)  # the points are whole numbers, which float16 holds


def test_every_process_says_what_is_wrong(ranks):
    world, _, refusals = ranks
    points = 8 if world == 3 else 4 * world
    assert {each["too few"] for each in refusals} == {
        f"k-means cannot find 10 centroids among {points} points in {world} processes. Lower k, or give more points."
    }
    assert len({each["nan"] for each in refusals}) == 1
    assert "2 of the 1797 points" in refusals[0]["nan"]
    assert all("dimensions; to be clustered together" in each["dimensions"] for each in refusals)


def test_processes_continue_from_the_state_of_the_first(tmp_path):
    assert run_ranks(f"{MODULE}:cluster_all", 2, tmp_path)
    assert run_ranks(f"{MODULE}:continue_all", 2, tmp_path) == ["(1, 3), wrote", "(1, 3), wrote nothing"]
    whole = load_file(tmp_path / "k-means++-0.safetensors")
    for rank in range(2):
        assert_same(load_file(tmp_path / f"continued-{rank}.safetensors"), whole)


def test_a_killed_clustering_continues_to_the_same_bits(tmp_path):
    with pytest.raises(AssertionError, match=r"ended with -9"):
        run_ranks(f"{MODULE}:die", 1, tmp_path)
    continued = cluster("k-means++", Processes(), checkpoint=tmp_path / "state")
    whole = cluster("k-means++", Processes())
    assert torch.equal(continued.centroids, whole.centroids)
    assert continued.history == whole.history
