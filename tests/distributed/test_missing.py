"""Where a process hangs, fails or is killed, the others end in an error that names it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from tests.distributed.ranks import started_ranks

MODULE = "tests.distributed.missing_on_ranks"
# What happens to the last process of how many, and how many are killed.
STARTS = (
    *(("hang", world, 0) for world in (2, 4)),
    *(("fail", world, 0) for world in (2, 4)),
    *(("die", world, 1) for world in (2, 4)),
    ("stay_away", 3, 0),
    ("differ", 3, 0),
)
Ended = dict[tuple[str, int], list[Any]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What every process of every start ended with. They wait for seconds, so all wait at the same time."""
    with ExitStack() as stack:
        waiting = {}
        for function, world, killed in STARTS:
            folder = tmp_path_factory.mktemp(function)
            waiting[function, world] = stack.enter_context(started_ranks(f"{MODULE}:{function}", world, folder, killed))
        return {start: results() for start, results in waiting.items()}


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_does_not_arrive_is_named(ended: Ended, world: int) -> None:
    *others, _ = ended["hang", world]
    for message in others:
        assert f"After 2 s, 1 of {world} processes did not arrive where the others wait: rank {world - 1} (process " in message
        assert "mechanics.longest_wait" in message
        assert float(message.partition(" s")[0]) > 2.0


@pytest.mark.parametrize("world", [2, 4])
def test_the_error_of_one_process_is_read_by_the_others(ended: Ended, world: int) -> None:
    *others, failed = ended["fail", world]
    assert failed == "own: This folder has no images."
    for message in others:
        assert f"rank {world - 1} (process" in message
        assert "has ended: This folder has no images." in message


@pytest.mark.parametrize("world", [2, 4])
def test_a_process_that_was_killed_is_named(ended: Ended, world: int) -> None:
    *others, killed = ended["die", world]
    assert killed is None
    for message in others:
        assert f"1 of {world} processes ended without a message: rank {world - 1} (process" in message


def test_a_process_that_never_joins_is_named(ended: Ended) -> None:
    first, _, away = ended["stay_away", 3]
    assert away == "away"
    assert "not all of 3 processes came to 127.0.0.1:" in first
    assert ": rank 2 did not answer." in first


def test_another_version_of_mapet_is_refused_by_all(ended: Ended) -> None:
    messages = ended["differ", 3]
    assert all("The processes differ in the version of mapet: that of rank 2 is not that of rank 0" in each for each in messages)
