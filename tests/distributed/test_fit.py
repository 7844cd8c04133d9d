"""Several processes fit one tokenizer, from the patches that one process would take."""

from __future__ import annotations

import pytest

from mapet.tokenizers.load import load_tokenizer
from tests.distributed.fit_on_ranks import fit
from tests.distributed.ranks import run_ranks


def test_processes_share_the_images_and_the_clustering(tmp_path):
    (tmp_path / "together").mkdir()
    found = run_ranks("tests.distributed.fit_on_ranks:fit", 2, tmp_path / "together")
    assert all(each == found[0] for each in found)
    saved = load_tokenizer(tmp_path / "together" / "tokenizer")
    assert (saved.fingerprint, saved.fit_report) == (found[0]["fingerprint"], found[0]["report"])
    assert not (tmp_path / "together" / ".tokenizer.features").exists()
    alone = fit(tmp_path / "alone")["report"]
    assert [found[0]["report"][name] for name in ("images", "points")] == [alone["images"], alone["points"]]
    assert found[0]["report"]["inertia"] == pytest.approx(alone["inertia"], rel=0.05)
