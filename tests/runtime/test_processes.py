from __future__ import annotations

import pytest
import torch

from mapet.errors import SettingsError
from mapet.runtime.processes import (
    Processes,
    all_sum_,
    barrier,
    broadcast_,
    gather_numbers,
    gather_rows,
    process_group,
    this_process,
)
from tests.distributed.ranks import run_ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def without_torchrun(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_variables(monkeypatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_one_process_needs_nothing():
    with process_group("cpu") as processes:
        assert processes == this_process() == Processes(0, 1, 0)
        assert not torch.distributed.is_initialized()
        barrier()
        rows = torch.arange(6).view(3, 2)
        assert gather_rows(rows) is rows
        assert all_sum_(rows) is rows
        assert broadcast_(rows) is rows
        assert rows.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert gather_numbers(4) == [4]


def test_variables_of_torchrun(monkeypatch):
    set_variables(monkeypatch, RANK="3", WORLD_SIZE="4", LOCAL_RANK="1")
    assert this_process() == Processes(rank=3, world=4, local_rank=1, local_world=4)
    assert this_process().device("cuda") == torch.device("cuda", 1)
    assert this_process().device("cuda:0") == torch.device("cuda", 0)
    assert this_process().device("cpu") == torch.device("cpu")


def test_one_process_started_by_torchrun(monkeypatch):
    set_variables(monkeypatch, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    assert this_process() == Processes()
    assert this_process().device("cuda") == torch.device("cuda")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is ''. Allowed: 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK is '2'. Allowed: 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "LOCAL_RANK is ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'. Allowed: 1 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
    ],
)
def test_incomplete_variables_are_named(monkeypatch, values, message):
    set_variables(monkeypatch, **values)
    with pytest.raises(SettingsError, match=message):
        this_process()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_more_processes_than_gpus(monkeypatch):
    set_variables(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    with pytest.raises(SettingsError, match="Process 1 of this machine has no GPU of its own: there are 0"):
        with process_group("cuda"):
            pass


def test_helpers_in_three_processes(tmp_path):
    results = run_ranks("tests.distributed.helpers_on_ranks:use_helpers", 3, tmp_path)
    for rank, found in enumerate(results):
        assert found["processes"] == [rank, 3, rank]
        assert found["nested is the same"]
        assert "torchrun started 3 processes" in found["without a group"]
        assert found["sum"] == [3.0, 4.5]
        assert found["broadcast"] == [8]
        assert found["rows"] == found["half"] == [[100, 101], [200, 201], [202, 203]]
        assert found["no rows"] == [0, 3]
        assert found["numbers"] == [10, 11, 12]


def test_a_group_can_be_opened_again(tmp_path):
    assert run_ranks("tests.distributed.helpers_on_ranks:use_the_group_twice", 2, tmp_path) == [[2.0, 4.0]] * 2
