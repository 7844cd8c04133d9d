"""Several processes fit one tokenizer, from the patches that one process would take, to what it would find."""

from __future__ import annotations

import pytest
import torch

from mapet.tokenizers.load import load_tokenizer
from tests.distributed.fit_on_ranks import fit
from tests.distributed.ranks import run_ranks


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_images_and_find_what_one_finds(tmp_path, world):
    (tmp_path / "together").mkdir()
    found = run_ranks("tests.distributed.fit_on_ranks:fit", world, tmp_path / "together")
    assert all(each == found[0] for each in found)
    saved = load_tokenizer(tmp_path / "together" / "tokenizer")
    assert (saved.fingerprint, saved.fit_report) == (found[0]["fingerprint"], found[0]["report"])
    assert not (tmp_path / "together" / ".tokenizer.features").exists()
    alone = fit(tmp_path / "alone")["report"]
    assert found[0]["report"] == {name: pytest.approx(value, rel=1e-6) for name, value in alone.items()}
    expected = load_tokenizer(tmp_path / "alone" / "tokenizer").state_dict()
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)
