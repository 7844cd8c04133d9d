"""What every registered objective must do: a new one is tested by registering it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from mapet.compat import timm
from mapet.data.batch import Batch
from mapet.errors import ModelError, SettingsError
from mapet.models import create_backbone
from mapet.objectives import OBJECTIVES, create_objective
from mapet.objectives.masking import narrow_corruption

VOCAB = 32
OPTIONS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.1}

pytestmark = pytest.mark.parametrize("name", list(OBJECTIVES))


def build(name: str, seed: int = 0, num_context: int | None = 4, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    backbone = create_backbone("vit_tiny_patch16_224", **(OPTIONS | options))
    return create_objective(name, backbone=backbone, vocab_size=VOCAB, num_context=num_context)


def random_batch(batch_size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch_size, 3, 16, 16, generator=generator)
    return Batch(images, torch.randint(VOCAB, (batch_size, 16), generator=generator))


def draw(objective: nn.Module, batch: Batch, seed: int = 2) -> object:
    return objective.corrupt(batch, torch.Generator().manual_seed(seed))


def tensors(corruption: object) -> list[Tensor]:
    values = [getattr(corruption, field.name) for field in dataclasses.fields(corruption)]
    return [value for value in values if isinstance(value, Tensor)]


def mean_loss(objective: nn.Module, batch: Batch, seed: int = 2) -> Tensor:
    output = objective(batch, draw(objective, batch, seed))
    return output.loss_sum / output.num_targets


def test_starts_near_the_uniform_guess(name: str) -> None:
    loss = mean_loss(build(name), random_batch())
    assert abs(loss.item() - math.log(VOCAB)) < 0.3


def test_same_seed_gives_the_same_loss(name: str) -> None:
    losses = [mean_loss(build(name), random_batch()) for _ in range(2)]
    assert torch.equal(*losses)


def test_another_seed_hides_something_else(name: str) -> None:
    objective, batch = build(name), random_batch()
    first, again, other = (tensors(draw(objective, batch, seed)) for seed in (2, 2, 3))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_images_of_a_batch_hide_different_patches(name: str) -> None:
    objective, batch = build(name), random_batch()
    assert all(len(value.unique(dim=0)) > 1 for value in tensors(draw(objective, batch)))


def test_gradient_reaches_everything_but_the_classifier(name: str) -> None:
    objective = build(name)
    mean_loss(objective, random_batch()).backward()
    reached = {key for key, value in objective.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    expected = {key for key, _ in objective.named_parameters() if not key.startswith("backbone.head.")}
    # the last block's projections of open rows are not used; a key bias shifts all scores alike, so that joint qkv still moves
    assert reached == expected


def test_targets_are_the_tokens_of_their_patches(name: str) -> None:
    objective, batch = build(name), random_batch()
    batch = Batch(batch.images, torch.arange(16).expand(8, -1).contiguous())
    output = objective(batch, draw(objective, batch), return_logits=True)
    logits, positions = output.logits, output.target_positions
    assert logits.shape == (*positions.shape, VOCAB)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), positions.flatten(), reduction="sum")
    torch.testing.assert_close(output.loss_sum, loss)
    assert int(output.metrics["correct"]) == int((logits.argmax(-1) == positions).sum())
    assert all(len(row.unique()) == len(row) for row in positions)


def test_backbone_stays_a_timm_model(name: str) -> None:
    objective = build(name)
    mean_loss(objective, random_batch()).backward()
    torch.optim.SGD(objective.parameters(), lr=0.1).step()
    other = timm.create_model("vit_tiny_patch16_224", **OPTIONS)
    other.load_state_dict(objective.backbone.state_dict(), strict=True)
    images = random_batch().images
    assert torch.equal(other.eval()(images), objective.backbone.eval()(images))


def test_loss_is_the_sum_over_micro_batches(name: str) -> None:
    objective, batch = build(name), random_batch()
    corruption = draw(objective, batch)
    whole = objective(batch, corruption)
    parts = [
        objective(Batch(batch.images[part], batch.token_ids[part]), narrow_corruption(corruption, part))
        for part in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum)
    assert sum(int(part.num_targets) for part in parts) == int(whole.num_targets)


def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        objective = build(name)
        objective.backbone.set_grad_checkpointing(checkpointing)
        mean_loss(objective.train(), random_batch()).backward()
        gradients.append([value.grad for value in objective.parameters() if value.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_is_close(name: str) -> None:
    objective, batch = build(name), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = mean_loss(objective, batch)
    torch.testing.assert_close(rough, mean_loss(objective, batch), rtol=0.02, atol=0)


def test_learns_a_planted_task(name: str) -> None:
    """Every image has one colour, and every patch the token of that colour: the context gives it away."""
    objective = build(name).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(3)
    accuracy = 0.0
    for _ in range(200):
        colour = torch.randint(8, (32,), generator=generator)
        images = torch.eye(8)[colour][:, [0, 1, 2]] + colour.view(-1, 1) / 8
        batch = Batch(images.view(-1, 3, 1, 1).expand(-1, -1, 16, 16).contiguous(), colour.view(-1, 1).expand(-1, 16).contiguous())
        output = objective(batch, objective.corrupt(batch, generator))
        optimizer.zero_grad()
        (output.loss_sum / output.num_targets).backward()
        optimizer.step()
        accuracy = int(output.metrics["correct"]) / int(output.num_targets)
        if accuracy > 0.99:
            break
    assert accuracy > 0.9


def test_follows_the_backbone_to_its_dtype(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", **OPTIONS).double()
    objective = create_objective(name, backbone=backbone, vocab_size=VOCAB, num_context=4)
    batch = Batch(random_batch().images.double(), random_batch().token_ids)
    torch.testing.assert_close(mean_loss(objective, batch).float(), mean_loss(build(name), random_batch()), rtol=0.2, atol=0)
    assert mean_loss(objective, batch).dtype == torch.float64


def test_an_ignored_token_is_no_target(name: str) -> None:
    objective, batch = build(name), random_batch()
    ids = batch.token_ids.clone()
    ids[:4] = -100
    corruption = draw(objective, batch)
    half = objective(Batch(batch.images, ids), corruption)
    whole = objective(Batch(batch.images[4:], batch.token_ids[4:]), narrow_corruption(corruption, slice(4, 8)))
    assert int(half.num_targets) == int(whole.num_targets)
    torch.testing.assert_close(half.loss_sum, whole.loss_sum)


@pytest.mark.parametrize("num_context", [-1, 16, 100, 4.0, "four"])
def test_refuses_a_context_out_of_range(name: str, num_context: int) -> None:
    with pytest.raises(ModelError, match=r"num_context is .* an integer between 0 and 15"):
        build(name, num_context=num_context)


def test_a_quarter_is_context_by_default(name: str) -> None:
    assert build(name, num_context=None).num_context == 4


def test_refuses_unknown_options_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=r"num_contexts.*Did you mean 'num_context'"):
        create_objective(name, backbone=create_backbone("vit_tiny_patch16_224", **OPTIONS), vocab_size=8, num_contexts=3)


@pytest.mark.parametrize(
    "ids",
    [None, torch.zeros(8, 9, dtype=torch.int64), torch.zeros(7, 16, dtype=torch.int64)],
    ids=["none", "another grid", "another batch"],
)
def test_refuses_tokens_that_do_not_fit(name: str, ids: Tensor | None) -> None:
    objective, batch = build(name), random_batch()
    with pytest.raises(ModelError, match="one visual token for each of the 16 patches"):
        objective(Batch(batch.images, ids), draw(objective, batch))


def test_load_released_is_strict(name: str) -> None:
    objective = build(name)
    with pytest.raises(ModelError, match=r"Missing: .*Not known here: backbone.surprise"):
        objective.load_released({"surprise": torch.zeros(1)})
