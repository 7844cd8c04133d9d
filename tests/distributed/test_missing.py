"""Where a process hangs, fails or is killed, the others end in an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks

MODULE = "tests.distributed.missing_on_ranks"


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_does_not_arrive_is_named(tmp_path: Path, world: int) -> None:
    *others, _ = run_ranks(f"{MODULE}:hang", world, tmp_path)
    for message in others:
        assert f"After 2 s, 1 of {world} processes did not arrive where the others wait: rank {world - 1} (process " in message
        assert "mechanics.longest_wait" in message
        assert float(message.partition(" s")[0]) > 2.0


@pytest.mark.parametrize("world", [2, 4])
def test_the_error_of_one_process_is_read_by_the_others(tmp_path: Path, world: int) -> None:
    *others, failed = run_ranks(f"{MODULE}:fail", world, tmp_path)
    assert failed == "own: This folder has no images."
    for message in others:
        assert f"rank {world - 1} (process" in message
        assert "has ended: This folder has no images." in message


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_was_killed_is_named(tmp_path: Path, world: int) -> None:
    *others, killed = run_ranks(f"{MODULE}:die", world, tmp_path, killed=1)
    assert killed is None
    for message in others:
        assert f"1 of {world} processes ended without a message: rank {world - 1} (process" in message


def test_a_process_that_never_joins_is_named(tmp_path: Path) -> None:
    first, _, away = run_ranks(f"{MODULE}:stay_away", 3, tmp_path)
    assert away == "away"
    assert "not all of 3 processes came to 127.0.0.1:" in first
    assert ": rank 2 did not answer." in first


def test_another_version_of_mapet_is_refused_by_all(tmp_path: Path) -> None:
    messages = run_ranks(f"{MODULE}:differ", 3, tmp_path)
    assert all("The processes differ in the version of mapet: that of rank 2 is not that of rank 0" in each for each in messages)
