"""Objectives against the naive dense reference in float64, and what may never leak."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dense_two_stream import dense_loss
from mapet.data.batch import Batch
from mapet.errors import ModelError, SettingsError
from mapet.models import create_backbone
from mapet.objectives import create_objective
from tests.objectives.dense_reference import dense_logits, masked_logits

VOCAB = 40


def build(name: str, num_context: float, settings: dict | None = None, **backbone_options: object) -> nn.Module:
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "init_values": 0.3, "num_classes": 0}
    torch.manual_seed(5)
    backbone = create_backbone("vit_tiny_patch16_224", **(options | backbone_options))
    objective = create_objective(name, backbone=backbone, vocab_size=VOCAB, num_context=num_context, **(settings or {}))
    for parameter in objective.parameters():
        nn.init.normal_(parameter, std=0.3)
    return objective


def random_batch(batch_size: int = 3, num_patches: int = 16, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(batch_size, 3, 16, 16, generator=generator, dtype=dtype)
    return Batch(images, torch.randint(VOCAB, (batch_size, num_patches), generator=generator))


def reference_logits(name: str, objective: nn.Module, batch: Batch, corruption: object) -> dict[tuple[int, int], Tensor]:
    if name == "mim":
        return masked_logits(objective, batch.images, corruption.mask)
    return dense_logits(objective, batch.images, corruption.permutation, name)


VARIANTS = [
    *[(name, num_context, {}) for name in ("mim", "pim", "mapet") for num_context in (0, 1, 5, 15, 0.3)],
    *[(name, 5, {"context": "block"}) for name in ("pim", "mapet")],
    *[(name, 5, {"predict_last": last}) for name in ("pim", "mapet") for last in (1, 4, 0.5, 11)],
    ("mapet", 5, {"context": "block", "predict_last": 4}),
]


@pytest.mark.parametrize(("name", "num_context", "settings"), VARIANTS)
def test_equals_the_dense_reference(name: str, num_context: float, settings: dict) -> None:
    objective = build(name, num_context, settings).double()
    batch = random_batch()
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(7))
    output = objective(batch, corruption, return_logits=True)
    expected = reference_logits(name, objective, batch, corruption)
    loss = torch.zeros((), dtype=torch.float64)
    for (sample, patch), logits in expected.items():
        slot = output.target_positions[sample].tolist().index(patch)
        torch.testing.assert_close(output.logits[sample, slot], logits, rtol=0, atol=1e-9)
        loss = loss - logits.log_softmax(-1)[batch.token_ids[sample, patch]]
    assert int(output.num_targets) == len(expected) == output.target_positions.numel()
    torch.testing.assert_close(output.loss_sum, loss, rtol=1e-12, atol=1e-9)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(output.loss_sum, parameters, materialize_grads=True)
    theirs = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("share", "context"), [(0.3, 5), (0.25, 4), (0.01, 0), (0.94, 15)], ids=["rounds up", "exact", "to none", "to all but one"]
)
def test_context_as_a_share_is_rounded_to_patches(share: float, context: int) -> None:
    objective = build("mapet", share)
    assert (objective.num_context, objective.num_targets) == (context, 16 - context)
    batch = random_batch(dtype=torch.float32)
    of_share, of_number = (
        chosen(batch, chosen.corrupt(batch, torch.Generator().manual_seed(7))).loss_sum
        for chosen in (objective, build("mapet", context))
    )
    assert torch.equal(of_share, of_number)


def test_predicting_the_last_targets_changes_nothing_about_them() -> None:
    batch = random_batch()
    every, last = build("mapet", 5).double(), build("mapet", 5, {"predict_last": 3}).double()
    corruption = every.corrupt(batch, torch.Generator().manual_seed(7))
    all_logits, last_logits = (chosen(batch, corruption, return_logits=True).logits for chosen in (every, last))
    torch.testing.assert_close(last_logits, all_logits[:, -3:], rtol=0, atol=1e-12)
    assert last.sequence_length == every.sequence_length - 8 == 1 + 16 + 11 + 3


@pytest.mark.parametrize("last", [0, 12, 1.0, 0.01])
def test_refuses_to_predict_more_targets_than_there_are(last: object) -> None:
    with pytest.raises(ModelError, match=r"predict_last is .*with 11 targets it must be an integer between 1 and 11, or a share"):
        build("mapet", 5, {"predict_last": last})


@pytest.mark.parametrize("name", ["pim", "mapet"])
def test_block_context_is_what_blocks_leave_visible(name: str) -> None:
    objective, images = build(name, 32, {"context": "block"}, img_size=32), torch.zeros(400, 3, 32, 32)
    permutation = objective.corrupt(Batch(images), torch.Generator().manual_seed(7)).permutation
    assert torch.equal(permutation.sort(dim=1).values, torch.arange(64).expand(400, -1))
    targets = permutation[:, 32:]
    hidden = torch.zeros(400, 64, dtype=torch.bool).scatter_(1, targets, True).view(-1, 8, 8)
    assert hidden[:, 3:5, 3:5].float().mean() > 0.6  # half of all patches are hidden, and the centre more often
    assert (
        hidden[:, 1:] == hidden[:, :-1]
    ).float().mean() > 0.7  # neighbours share their fate; independent ones do half of the time
    ranks_in_raster_order = targets.argsort(dim=1).argsort(dim=1).float()
    assert (ranks_in_raster_order.mean(dim=0) - 15.5).abs().max() < 5 * 9.2 / 20  # targets come in any order


def test_refuses_another_context_by_name() -> None:
    with pytest.raises(SettingsError, match=r"no context 'blocks'. Did you mean 'block'"):
        build("pim", 5, {"context": "blocks"})


@pytest.mark.parametrize("settings", [{}, {"context": "block"}, {"predict_last": 4}], ids=["default", "block", "last"])
@pytest.mark.parametrize("name", ["pim", "mapet"])
def test_target_content_reaches_later_targets_only(name: str, settings: dict) -> None:
    objective = build(name, 5, settings)
    batch = random_batch(dtype=torch.float32)
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(8))
    before = objective(batch, corruption, return_logits=True).logits
    skipped = objective.num_targets - objective.num_predicted
    for rank in range(objective.num_targets):
        changed = replace_patches(batch, corruption.permutation[:, 5 + rank])
        after = objective(changed, corruption, return_logits=True).logits
        first_later = max(0, rank + 1 - skipped)
        assert torch.equal(after[:, :first_later], before[:, :first_later])
        assert all(not torch.equal(after[:, later], before[:, later]) for later in range(first_later, objective.num_predicted))


def test_hidden_content_reaches_no_target_of_mim() -> None:
    objective = build("mim", num_context=5)
    batch = random_batch(dtype=torch.float32)
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(8))
    before = objective(batch, corruption, return_logits=True)
    for slot in range(objective.num_targets):
        after = objective(replace_patches(batch, before.target_positions[:, slot]), corruption, return_logits=True)
        assert torch.equal(after.logits, before.logits)


@pytest.mark.parametrize("name", ["mim", "pim", "mapet"])
def test_context_reaches_every_target(name: str) -> None:
    objective = build(name, num_context=5)
    batch = random_batch(dtype=torch.float32)
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(8))
    visible = corruption.mask.int().argmin(dim=1) if name == "mim" else corruption.permutation[:, 0]
    before = objective(batch, corruption, return_logits=True).logits
    after = objective(replace_patches(batch, visible), corruption, return_logits=True).logits
    assert (after != before).any(dim=-1).all()


def replace_patches(batch: Batch, patches: Tensor) -> Batch:
    """The batch with other pixels in one patch of every image."""
    images = batch.images.clone()
    for image, patch in zip(images, patches.tolist(), strict=True):
        top, left = 4 * (patch // 4), 4 * (patch % 4)
        image[:, top : top + 4, left : left + 4] += 10
    return dataclasses.replace(batch, images=images)


@pytest.mark.parametrize("name", ["mim", "pim", "mapet"])
@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
        {"no_embed_class": True},
        {"qk_norm": True},
        {"pre_norm": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_plain_vits_can_be_pretrained(name: str, options: dict) -> None:
    objective = build(name, 5, **options)
    batch = random_batch(dtype=torch.float32)
    output = objective(batch, objective.corrupt(batch, torch.Generator().manual_seed(9)))
    output.loss_sum.backward()
    assert torch.isfinite(output.loss_sum)
    unused = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert unused == set()


def test_masks_of_unequal_size_count_every_hidden_patch_once() -> None:
    objective = build("mim", num_context=5).double()
    batch = random_batch()
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(9))
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, :2], mask[1, 4:11] = True, True
    corruption = dataclasses.replace(corruption, mask=mask)
    output = objective(batch, corruption, return_logits=True)
    assert int(output.num_targets) == 9
    assert [(row >= 0).sum().item() for row in output.target_positions] == [2, 7, 0]
    expected = masked_logits(objective, batch.images, mask)
    loss = sum(-logits.log_softmax(-1)[batch.token_ids[key]] for key, logits in expected.items())
    torch.testing.assert_close(output.loss_sum, loss, rtol=1e-12, atol=1e-9)


def test_the_dense_path_of_the_benchmark_is_mapet() -> None:
    objective = build("mapet", num_context=5).double()
    batch = random_batch()
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(9))
    dense = dense_loss(objective, batch, corruption.permutation)
    torch.testing.assert_close(dense, objective(batch, corruption).loss_sum, rtol=1e-12, atol=0)


def test_nothing_hidden_gives_a_loss_of_zero() -> None:
    objective = build("mim", num_context=5)
    batch = random_batch(dtype=torch.float32)
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(9))
    output = objective(batch, dataclasses.replace(corruption, mask=torch.zeros_like(corruption.mask)))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0
    assert int(output.num_targets) == 0
