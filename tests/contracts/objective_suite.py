"""What every objective must do, whatever it hides and predicts: one function a promise, each given the objective's name.

A check builds what it needs and fails by an assertion. `checks_of` says which apply, from what the objective needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from mapet.compat import timm
from mapet.data.batch import Batch
from mapet.errors import ModelError, SettingsError
from mapet.models import create_backbone
from mapet.objectives import OBJECTIVES, create_objective
from mapet.objectives.base import NEEDS, MaskedTokenObjective, TokenObjective
from mapet.objectives.masking import narrow_corruption
from mapet.registry import options_of
from tests.contracts.tiny_objectives import (
    BACKBONE,
    MODEL,
    NEEDED,
    PATCH,
    PATCHES,
    SIDE,
    VOCAB,
    awakened,
    build,
    draw,
    entering,
    forward,
    gradients,
    mean_loss,
    move,
    part_of,
    random_batch,
    tensors,
    with_other_pixels,
)

Check = Callable[[str], None]
# Hidden tokens, a permutation, a decoder of its own, pixels, features of a teacher: the others are made of the same parts.
ONE_A_FAMILY = ("mim", "mapet", "cae", "simmim", "mvp")


def describes_itself(name: str) -> None:
    objective = build(name)
    assert objective.summary
    assert len(objective.summary) <= 90
    assert "\n" not in objective.summary
    assert set(objective.needs) <= set(NEEDS)
    assert isinstance(objective.view_size, int)


def output_is_sums_and_counts(name: str) -> None:
    output = forward(build(name))
    assert output.loss_sum.shape == output.num_targets.shape == ()
    assert output.num_targets.dtype == torch.int64
    assert output.num_targets > 0
    assert torch.isfinite(output.loss_sum)
    assert all(value.shape == () and not value.requires_grad for value in output.metrics.values())
    assert ("correct" in output.metrics) == ("tokens" in OBJECTIVES.get_or_import(name).needs)


def same_seed_gives_the_same_loss(name: str) -> None:
    first, second = (mean_loss(build(name)) for _ in range(2))
    assert torch.equal(first, second)


def draws_come_from_the_generator_alone(name: str) -> None:
    objective = build(name)
    batch, found = random_batch(objective), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        corruption = draw(objective, batch)
        found.append([*tensors(corruption), objective(batch, corruption).loss_sum])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def another_seed_hides_something_else(name: str) -> None:
    objective = build(name)
    batch = random_batch(objective)
    first, other = (tensors(draw(objective, batch, seed)) for seed in (2, 3))
    assert not first or any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))


def every_image_has_a_draw_of_its_own(name: str) -> None:
    objective = build(name)
    for value in tensors(draw(objective, random_batch(objective))):
        assert len(value) == 8
        assert len(value.unique(dim=0)) > 1


def gradient_reaches_all_but_the_unused(name: str) -> None:
    objective = build(name)
    reached = {key for key, value in gradients(objective).items() if value.abs().sum() > 0}
    trained = {key for key, value in objective.named_parameters() if value.requires_grad}
    assert reached == {key for key in trained if not re.match(objective.unused, key)}


def backbone_stays_a_timm_model(name: str) -> None:
    objective = build(name)
    move(objective)
    other = timm.create_model(MODEL, **BACKBONE)
    other.load_state_dict(objective.backbone.state_dict(), strict=True)
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(other.eval()(images), objective.backbone.eval()(images))


def state_dict_holds_all_that_was_learned(name: str) -> None:
    objective, other = build(name), build(name, seed=1)
    move(objective)
    other.load_state_dict(objective.state_dict(), strict=True)
    assert torch.equal(mean_loss(other), mean_loss(objective))
    move(objective)
    move(other)
    assert torch.equal(mean_loss(other), mean_loss(objective))


def loss_is_the_sum_over_micro_batches(name: str) -> None:
    objective = build(name)
    batch = random_batch(objective)
    corruption = draw(objective, batch)
    whole = objective(batch, corruption)
    slices = (slice(0, 1), slice(1, 3), slice(3, 8))
    parts = [objective(part_of(batch, part), narrow_corruption(corruption, part)) for part in slices]
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum)
    assert sum(int(part.num_targets) for part in parts) == int(whole.num_targets)
    for key, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[key] for part in parts), value)


def a_batch_without_images_is_no_loss(name: str) -> None:
    objective = build(name)
    batch = part_of(random_batch(objective), slice(0, 0))
    output = objective(batch, draw(objective, batch))
    output.loss_sum.backward()
    assert output.loss_sum == output.num_targets == 0


def counts_its_rows(name: str) -> None:
    objective = build(name)
    seen: list[int] = []
    first: Any = objective.backbone.blocks[0]
    first.norm1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    forward(objective)
    assert sum(seen) == objective.sequence_length


def activation_checkpointing_changes_no_gradient(name: str) -> None:
    plain, checkpointed = build(name).train(), build(name).train()
    checkpointed.backbone.set_grad_checkpointing(True)
    expected, found = gradients(plain), gradients(checkpointed)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def bf16_is_close(name: str) -> None:
    objective = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = mean_loss(objective)
    torch.testing.assert_close(rough.float(), mean_loss(objective), rtol=0.02, atol=0)


def follows_the_backbone_to_float64(name: str) -> None:
    objective = build(name, dtype=torch.float64)
    assert {value.dtype for value in objective.state_dict().values() if value.is_floating_point()} == {torch.float64}
    single, loss = build(name), mean_loss(objective)
    single.load_state_dict(objective.state_dict())
    assert loss.dtype == torch.float64
    torch.testing.assert_close(mean_loss(single), loss.float(), rtol=1e-5, atol=0)


def compiled_is_the_same(name: str) -> None:
    """Traced without generating code, which would need a compiler and take minutes; of one a family also the backward pass."""
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile is not available on this Python")
    objective, other = build(name), build(name)
    torch._dynamo.reset()
    compiled: Any = torch.compile(other, backend="aot_eager" if name in ONE_A_FAMILY else "eager")
    batch = random_batch(objective)
    corruption = draw(objective, batch)
    expected, found = objective(batch, corruption), compiled(batch, corruption)
    torch.testing.assert_close(found.loss_sum, expected.loss_sum)
    expected.loss_sum.backward()
    found.loss_sum.backward()
    for one, two in zip(objective.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad)


def refuses_unknown_options_by_name(name: str) -> None:
    own = [key for key in options_of(OBJECTIVES.get_or_import(name)) if key not in ("backbone", "vocab_size")]
    misspelt = f"{(own or ['option'])[0]}s"
    with pytest.raises(SettingsError, match=f"no option '{misspelt}'"):
        build(name, **{misspelt: 3})


def names_what_it_is_not_given(name: str) -> None:
    kind = OBJECTIVES.get_or_import(name)
    for need in set(kind.needs) & NEEDED.keys():
        with pytest.raises(SettingsError, match=f"needs the option '{need}'"):
            create_objective(name, backbone=create_backbone(MODEL, **BACKBONE), vocab_size=VOCAB)
    if "tokens" in kind.needs:
        with pytest.raises(SettingsError, match=r"predicts visual tokens\. Give vocab_size"):
            create_objective(name, backbone=create_backbone(MODEL, **BACKBONE))


def load_released_is_strict(name: str) -> None:
    objective = build(name)
    if not hasattr(objective, "load_released"):
        return
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    with pytest.raises(ModelError, match="surprise"):
        objective.load_released({"surprise": torch.zeros(1)})
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


def learns_a_planted_task(name: str) -> None:
    """Four images, each with tokens of its own: what is visible tells which of them it is, and so all that is hidden."""
    objective = build(name).train()
    optimizer = torch.optim.AdamW([value for value in objective.parameters() if value.requires_grad], lr=5e-3)
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(4, 3, 8, 8, generator=generator)
    images = interpolate(coarse, size=2 * [objective.view_size], mode="bilinear")
    ids = torch.randint(VOCAB, (4, PATCHES), generator=generator)
    first, recent, enough = 0.0, [], 0.1 if "tokens" in objective.needs else 0.3
    for step in range(200):
        chosen = torch.randint(4, (16,), generator=generator)
        batch = Batch(images[chosen], ids[chosen])
        output = objective(batch, objective.corrupt(batch, generator))
        optimizer.zero_grad()
        (output.loss_sum / output.num_targets).backward()
        objective.before_optimizer_step()
        optimizer.step()
        loss = float(output.loss_sum.detach() / output.num_targets)
        first = first or loss
        correct = output.metrics.get("correct")
        missing = loss / first if correct is None else 1 - float(correct / output.num_targets)
        recent = [*recent[-4:], missing]
        if step > 5 and max(recent) < enough / 2:
            break
    assert sum(recent) / len(recent) < enough


def starts_near_the_uniform_guess(name: str) -> None:
    output = forward(build(name), return_logits=True)
    targets = random_batch(build(name)).token_ids.gather(1, output.target_positions.clamp(min=0))
    targets = targets.masked_fill(output.target_positions < 0, -100)
    assert abs(cross_entropy(output.logits.flatten(0, 1), targets.flatten()).item() - math.log(VOCAB)) < 0.3


def targets_are_the_tokens_of_their_patches(name: str) -> None:
    """The gradient of cross-entropy pulls up the logit of the target, and no other."""
    objective = build(name)
    batch = random_batch(objective)
    batch = Batch(batch.images, torch.arange(PATCHES).expand(8, -1) + torch.arange(8).unsqueeze(1))
    output = objective(batch, draw(objective, batch), return_logits=True)
    valid = output.target_positions >= 0
    tokens = batch.token_ids.gather(1, output.target_positions.clamp(min=0))
    (pull,) = torch.autograd.grad(output.loss_sum, output.logits)
    assert output.logits.shape == (*valid.shape, VOCAB)
    assert (pull.argmin(dim=-1) == tokens)[valid].all()
    assert ((pull < 0).sum(dim=-1) == 1)[valid].all()
    assert int(output.metrics["correct"]) == int((output.logits.argmax(-1) == tokens)[valid].sum())
    assert int(output.num_targets) == int(valid.sum())
    assert all(len(row[row >= 0].unique()) == (row >= 0).sum() for row in output.target_positions)


def content_of_a_target_never_reaches_its_own_prediction(name: str) -> None:
    objective = awakened(build(name))
    batch = random_batch(objective)
    corruption = draw(objective, batch)
    before = objective(batch, corruption, return_logits=True)
    for slot in range(before.target_positions.shape[1]):
        changed = with_other_pixels(batch, before.target_positions[:, slot])
        after = objective(changed, corruption, return_logits=True)
        assert torch.equal(after.logits[:, slot], before.logits[:, slot])


def what_is_visible_reaches_every_prediction(name: str) -> None:
    objective = awakened(build(name))
    batch = random_batch(objective)
    corruption = draw(objective, batch)
    before = objective(batch, corruption, return_logits=True)
    after = objective(Batch(batch.images + 1, batch.token_ids), corruption, return_logits=True)
    assert (after.logits != before.logits).any(dim=-1)[before.target_positions >= 0].all()


def knows_how_images_were_normalised(name: str) -> None:
    objective = build(name, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = torch.tensor([[0.1, 0.6], [0.2, 0.8], [0.3, 1.0]]).view(1, 3, 2, 1)
    torch.testing.assert_close(objective.pixels(torch.tensor([0.0, 1.0]).view(1, 1, 2, 1).expand(1, 3, 2, 1)), expected)


def hidden_pixels_never_enter_the_blocks(name: str) -> None:
    """For objectives with a mask over patches of the very image they are given; others have tests of their own."""
    objective = awakened(build(name))
    batch = random_batch(objective)
    corruption = draw(objective, batch)
    mask = getattr(corruption, "mask", None)
    if mask is None or mask.shape != (8, PATCHES) or objective.view_size != SIDE:
        return
    before = entering(objective, batch, corruption)
    hidden = mask.view(8, 1, SIDE // PATCH, SIDE // PATCH).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    after = entering(objective, Batch(batch.images + 10 * hidden, batch.token_ids), corruption)
    assert torch.equal(after, before)
    assert not torch.equal(entering(objective, Batch(batch.images + 10 * ~hidden, batch.token_ids), corruption), before)


def an_ignored_token_is_no_target(name: str) -> None:
    objective = build(name)
    batch = random_batch(objective)
    ids = batch.token_ids.clone()
    ids[:4] = -100
    corruption = draw(objective, batch)
    half = objective(Batch(batch.images, ids), corruption)
    whole = objective(part_of(batch, slice(4, 8)), narrow_corruption(corruption, slice(4, 8)))
    assert int(half.num_targets) == int(whole.num_targets)
    torch.testing.assert_close(half.loss_sum, whole.loss_sum)


def refuses_tokens_that_do_not_fit(name: str) -> None:
    objective = build(name)
    batch = random_batch(objective)
    corruption = draw(objective, batch)
    for ids in (None, torch.zeros(8, 9, dtype=torch.int64), torch.zeros(7, 16, dtype=torch.int64)):
        with pytest.raises(ModelError, match="one visual token for each of the 16 patches"):
            objective(Batch(batch.images, ids), corruption)


def refuses_a_context_out_of_range(name: str) -> None:
    for value in (True, "four"):
        with pytest.raises(SettingsError, match=r"num_context = .* is not allowed\. Allowed: a number"):
            build(name, num_context=value)
    for value in (-1, 16, 100, 4.0, 0.99, -0.5):
        with pytest.raises(ModelError, match=r"num_context is .*with 16 patches it must be an integer between \d+ and 15"):
            build(name, num_context=value)


OF_ALL: list[Check] = [
    describes_itself,
    output_is_sums_and_counts,
    same_seed_gives_the_same_loss,
    draws_come_from_the_generator_alone,
    another_seed_hides_something_else,
    every_image_has_a_draw_of_its_own,
    gradient_reaches_all_but_the_unused,
    backbone_stays_a_timm_model,
    state_dict_holds_all_that_was_learned,
    loss_is_the_sum_over_micro_batches,
    a_batch_without_images_is_no_loss,
    counts_its_rows,
    activation_checkpointing_changes_no_gradient,
    bf16_is_close,
    follows_the_backbone_to_float64,
    compiled_is_the_same,
    refuses_unknown_options_by_name,
    names_what_it_is_not_given,
    load_released_is_strict,
    learns_a_planted_task,
]
OF_TOKENS: list[Check] = [
    starts_near_the_uniform_guess,
    targets_are_the_tokens_of_their_patches,
    what_is_visible_reaches_every_prediction,
    an_ignored_token_is_no_target,
    refuses_tokens_that_do_not_fit,
]
OF_HIDDEN_TOKENS: list[Check] = [content_of_a_target_never_reaches_its_own_prediction]
OF_MASKED_TOKENS: list[Check] = [refuses_a_context_out_of_range]
OF_PIXELS: list[Check] = [knows_how_images_were_normalised, hidden_pixels_never_enter_the_blocks]


def checks_of(name: str) -> list[Check]:
    """All checks that an objective must pass. A `TokenObjective` that is no `MaskedTokenObjective` hides nothing."""
    kind = OBJECTIVES.get_or_import(name)
    checks, masked = [*OF_ALL], issubclass(kind, MaskedTokenObjective)
    if "tokens" in kind.needs:
        checks += OF_TOKENS + (OF_HIDDEN_TOKENS if masked or not issubclass(kind, TokenObjective) else [])
    return checks + (OF_MASKED_TOKENS if masked else []) + (OF_PIXELS if "pixels" in kind.needs else [])
