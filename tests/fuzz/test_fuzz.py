"""500 damaged inputs for every reader; `./dev fuzz` tries 20,000."""

from __future__ import annotations

import pytest

from tests.fuzz.campaign import run
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_ends_in_a_result_or_in_words(name, tmp_path):
    reader = READERS[name]
    outcome = run(reader, tmp_path / "fuzz", range(reader.inputs))
    faults = "\n".join(f"seed {seed}, {file}:\n{trace}" for seed, file, trace in outcome.faults[:3])
    assert not outcome.faults, f"{len(outcome.faults)} of {reader.inputs} inputs:\n{faults}"
    assert outcome.ends["refused"] > 0  # the damage reaches the reader
