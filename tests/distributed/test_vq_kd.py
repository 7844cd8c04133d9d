"""VQ-KD over several processes: they agree bit for bit, and learn what one process learns from the whole batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mapet.runtime.processes import Processes
from mapet.runtime.run_directory import RunDirectory
from mapet.tokenizers.load import load_tokenizer
from tests.distributed.ranks import run_ranks
from tests.distributed.vq_kd_on_ranks import SETTINGS, learn, train
from tests.tiny import weights_of

MODULE = "tests.distributed.vq_kd_on_ranks"


def test_ranks_agree_and_learn_what_one_process_learns(tmp_path):
    run_ranks(f"{MODULE}:learn_on_ranks", 2, tmp_path)
    first, second = (load_file(tmp_path / f"learnt-{rank}.safetensors") for rank in range(2))
    alone = learn(Processes())
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9, msg=name)
    assert not torch.equal(alone["tokenizer.codebook"], alone["started.tokenizer.codebook"])


def test_every_rank_ends_with_the_tokenizer_that_was_saved(tmp_path):
    found = run_ranks(f"{MODULE}:train_on_ranks", 2, tmp_path)
    saved = load_tokenizer(tmp_path / "whole").fingerprint
    assert found == [[saved, saved]] * 2
    assert load_tokenizer(tmp_path / "paused").fingerprint == saved


def test_a_training_continues_on_another_number_of_processes(tmp_path):
    """Two processes of which one is killed, then three, then one."""
    whole, changing = tmp_path / "whole", tmp_path / "changing"
    changing.mkdir()
    assert train(whole) == ""
    with pytest.raises(AssertionError, match="ended with -9"):
        run_ranks(f"{MODULE}:train_and_die", 2, changing)
    stopped = run_ranks(f"{MODULE}:train_and_stop", 3, changing)
    assert [message.partition(" of")[0] for message in stopped] == ["Stopped after step 5"] * 3
    assert train(changing) == ""
    entries = [RunDirectory(folder / "tokenizer.training").read_metrics() for folder in (changing, whole)]
    found, expected = ([entry["loss"] for entry in each] for each in entries)
    assert len(expected) == SETTINGS.steps
    assert found == pytest.approx(expected, rel=1e-5)
    weights = [weights_of(load_tokenizer(folder / "tokenizer")) for folder in (changing, whole)]
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_what_one_rank_hears_all_do(tmp_path):
    heard = run_ranks(f"{MODULE}:stop_one", 2, tmp_path)
    assert heard == [[True, 1, True]] * 2
