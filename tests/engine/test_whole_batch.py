"""Layers over a whole batch: with one process in float64 they are torch's own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mapet.engine.parallel import GlobalRows, Place
from mapet.engine.whole_batch import GlobalBatchNorm2d, GlobalDropout2d, place_whole_batch
from mapet.runtime.processes import Processes
from tests.distributed.ranks import run_ranks
from tests.engine import whole_batch_on_ranks as on_ranks


def test_batch_norm_is_torch_s_with_its_gradients() -> None:
    expected = on_ranks.normed(nn.BatchNorm2d(3).double(), on_ranks.images())
    own = nn.BatchNorm2d(3).double()
    own.__class__ = GlobalBatchNorm2d
    for name, value in on_ranks.normed(own, on_ranks.images()).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_batch_norm_of_several_processes_is_that_of_one(tmp_path) -> None:
    """Three processes, of which one has no image."""
    expected = on_ranks.normed(nn.BatchNorm2d(3).double(), on_ranks.images())
    lists = run_ranks(on_ranks.NORM, 3, tmp_path)
    found = [{name: torch.tensor(value, dtype=torch.float64) for name, value in each.items()} for each in lists]
    for name in ("output", "input_gradient"):
        rows = torch.cat([each[name].view(-1, *on_ranks.images().shape[1:]) for each in found])
        torch.testing.assert_close(rows, expected[name], rtol=1e-12, atol=1e-12, msg=name)
    for name in ("weight_gradient", "bias_gradient"):
        torch.testing.assert_close(sum(each[name] for each in found), expected[name], rtol=1e-12, atol=1e-12, msg=name)
    for name in ("mean", "variance"):
        assert all(torch.equal(each[name], found[0][name]) for each in found)
        torch.testing.assert_close(found[0][name], expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_dropout_of_channels_draws_for_the_whole_batch() -> None:
    place, images = Place(), torch.ones(6, 4, 2, 2)
    own = GlobalDropout2d(0.5)
    own.place = place

    def dropped(rows: GlobalRows, some: Tensor) -> Tensor:
        place.rows = rows
        torch.manual_seed(5)
        return own(some)

    whole = dropped(GlobalRows(0, 6, 6, 6), images)
    parts = [dropped(GlobalRows(start, 2, 6, 2), images[:2]) for start in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(5)
    assert torch.equal(nn.Dropout2d(0.5)(images), whole)


def test_one_process_keeps_torch_s_batch_norm() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout2d(0.1))
    before = copy.deepcopy(model.state_dict())
    place_whole_batch(model, Processes())
    assert type(model[0]) is nn.BatchNorm2d
    place_whole_batch(model, Processes(0, 2, 0))
    assert type(model[0]) is GlobalBatchNorm2d
    assert model.state_dict().keys() == before.keys()
