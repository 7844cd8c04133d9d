from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mapet.errors import TokenizerError
from mapet.tokenizers.clustering import state as kmeans_state
from mapet.tokenizers.clustering.kmeans import kmeans
from tests.tokenizers.clustering.test_kmeans import DIGITS


class Interrupted(Exception):
    pass


def interrupt_at(moment: tuple[int, int]):
    def stop(restart: int, iteration: int, _: float) -> None:
        if (restart, iteration) == moment:
            raise Interrupted

    return stop


@pytest.mark.parametrize("moments", [[(0, 0)], [(0, 3)], [(1, 0)], [(0, 2), (1, 4), (2, 1)]])
def test_a_continued_clustering_ends_with_the_same_bits(tmp_path, monkeypatch, moments):
    monkeypatch.setattr(kmeans_state, "SECONDS_BETWEEN_STATES", 0.0)
    options = {"iterations": 6, "restarts": 3, "start": "random", "seed": 1}
    whole = kmeans(DIGITS, 10, **options)
    passes: list[tuple[int, int]] = []
    for moment in moments:
        with pytest.raises(Interrupted):
            kmeans(DIGITS, 10, checkpoint=tmp_path / "state", on_iteration=interrupt_at(moment), **options)
    continued = kmeans(DIGITS, 10, checkpoint=tmp_path / "state", on_iteration=lambda r, i, _: passes.append((r, i)), **options)
    assert passes[0] == moments[-1]
    assert torch.equal(continued.centroids, whole.centroids)
    assert torch.equal(continued.counts, whole.counts)
    assert (continued.inertia, continued.history) == (whole.inertia, whole.history)


def test_a_restart_that_had_settled_does_not_move_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kmeans_state, "SECONDS_BETWEEN_STATES", 0.0)
    options = {"iterations": 6, "seed": 1, "tolerance": 1e3}
    whole = kmeans(DIGITS, 10, **options)
    with pytest.raises(Interrupted):
        kmeans(DIGITS, 10, checkpoint=tmp_path / "state", on_iteration=interrupt_at((0, 1)), **options)
    continued = kmeans(DIGITS, 10, checkpoint=tmp_path / "state", **options)
    assert continued.iterations == whole.iterations == 1
    assert torch.equal(continued.centroids, whole.centroids)


def test_a_finished_clustering_is_not_done_again(tmp_path):
    whole = kmeans(DIGITS, 10, iterations=3, seed=1, checkpoint=tmp_path / "state")
    again = kmeans(DIGITS, 10, iterations=3, seed=1, checkpoint=tmp_path / "state", on_iteration=interrupt_at((0, 0)))
    assert torch.equal(again.centroids, whole.centroids)
    assert again.history == whole.history


def test_a_state_of_another_clustering_is_refused(tmp_path):
    path = tmp_path / "state"
    kmeans(DIGITS, 10, iterations=2, seed=1, checkpoint=path)
    with pytest.raises(TokenizerError, match=r"another clustering: k 10 there, 11 here; seed 1 there, 2 here\. Remove it"):
        kmeans(DIGITS, 11, iterations=2, seed=2, checkpoint=path)
    with pytest.raises(TokenizerError, match="another clustering: fingerprints"):
        kmeans(DIGITS + 1, 10, iterations=2, seed=1, checkpoint=path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(TokenizerError, match="no state of a k-means"):
        kmeans(DIGITS, 10, iterations=2, seed=1, checkpoint=path)
    path.write_bytes(b"12345")
    with pytest.raises(TokenizerError, match="is damaged"):
        kmeans(DIGITS, 10, iterations=2, seed=1, checkpoint=path)
