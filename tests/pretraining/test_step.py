"""One step: accumulation changes nothing, every draw is a function of the step, and nothing moves where a number is not finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mapet.config.settings import PretrainSettings
from mapet.data.batch import Batch
from mapet.objectives.base import Objective, ObjectiveOutput
from mapet.objectives.masking import MaskCorruption
from mapet.objectives.mim import MIM
from mapet.pretraining.step import TrainingStep
from mapet.runtime.seeding import seeded_generator
from tests.tiny import BATCH, VOCAB, assert_equal_weights, tiny_objective, tiny_settings, weights_of

CPU = torch.device("cpu")
QUIET = {"training__drop_path": 0.0}


class UnequalMIM(MIM):
    """Hides another number of patches in every image, in one of them none."""

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        shares = torch.linspace(0, 0.9, len(batch.images))[:, None]
        return MaskCorruption(torch.rand(len(batch.images), self.num_patches, generator=generator) < shares)


def make_step(settings: PretrainSettings, objective: Objective | None = None) -> TrainingStep:
    objective = (objective or tiny_objective(settings)).train()
    return TrainingStep(objective, settings, CPU)


def images_and_tokens(count: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.randint(VOCAB, (count, 16), generator=generator)


def gradients_of(settings: PretrainSettings, name: str | None = None) -> tuple[float, float, dict[str, Tensor]]:
    """Mean loss, number of targets and unclipped gradients of one step."""
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"clip_norm": None})})
    objective = tiny_objective(settings)
    if name == "unequal":
        objective = UnequalMIM(objective.backbone, VOCAB)
        torch.nn.init.normal_(objective.head.weight, generator=torch.Generator().manual_seed(2))
        torch.nn.init.normal_(objective.mask_token, generator=torch.Generator().manual_seed(3))
    step = make_step(settings, objective)
    step.optimizer_step = lambda *_, **__: None  # type: ignore[method-assign]
    sums = step(*images_and_tokens(), 4, 1e-3)
    gradients = {name: p.grad.clone() for name, p in step.objective.named_parameters() if p.grad is not None}
    return float(sums.loss / sums.targets), float(sums.targets), gradients


def assert_close_gradients(one: dict[str, Tensor], other: dict[str, Tensor], share: float) -> None:
    assert one.keys() == other.keys()
    assert one
    largest = max(float(value.abs().max()) for value in one.values())
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=share * largest, msg=name)


@pytest.mark.parametrize("name", ["mim", "pim", "mapet", "unequal"])
@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
def test_accumulation_changes_neither_loss_nor_gradients(name: str, micro_batch: int) -> None:
    changes = {"objective__name": "mim" if name == "unequal" else name, **QUIET}
    whole = gradients_of(tiny_settings(**changes), name)
    parts = gradients_of(tiny_settings(mechanics__micro_batch=micro_batch, **changes), name)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == whole[1]
    assert_close_gradients(whole[2], parts[2], 1e-6)


@pytest.mark.parametrize("name", ["mim", "pim", "mapet"])
def test_activation_checkpointing_changes_nothing_with_drop_path(name: str) -> None:
    changes = {"objective__name": name, "training__drop_path": 0.5}
    plain = gradients_of(tiny_settings(**changes))
    saved = gradients_of(tiny_settings(mechanics__activation_checkpointing=True, **changes))
    assert saved[0] == plain[0]
    assert_close_gradients(plain[2], saved[2], 1e-7)


@pytest.mark.parametrize("name", ["mim", "pim", "mapet"])
def test_bf16_is_close_to_fp32(name: str) -> None:
    changes = {"objective__name": name, **QUIET}
    full = gradients_of(tiny_settings(**changes))
    half = gradients_of(tiny_settings(training__precision="bf16", **changes))
    assert half[0] != full[0]
    assert half[0] == pytest.approx(full[0], rel=1e-2)
    assert {value.dtype for value in half[2].values()} == {torch.float32}
    assert_close_gradients(full[2], half[2], 0.05)


def test_gradients_are_those_of_the_mean_over_all_targets() -> None:
    settings = tiny_settings(training__color_jitter=0.0, training__clip_norm=None, **QUIET)
    loss, targets, gradients = gradients_of(settings)
    objective = tiny_objective(settings).train()
    images, ids = images_and_tokens()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.training.mean, settings.training.std))
    batch = Batch((images.float() / 255 - mean) / std, ids)
    output = objective(batch, objective.corrupt(batch, seeded_generator(settings.seed, "corruption", 4)))
    mean = output.loss_sum / output.num_targets
    mean.backward()
    assert targets == BATCH * 12
    assert loss == pytest.approx(mean.item(), rel=1e-6)
    assert_close_gradients(gradients, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}, 1e-6)


def test_clipping_bounds_the_norm_and_reports_what_it_was() -> None:
    norms = []
    for clip_norm in (None, 1e-3):
        step = make_step(tiny_settings(training__clip_norm=clip_norm))
        step.optimizer_step = lambda *_, **__: None  # type: ignore[method-assign]
        reported = float(step(*images_and_tokens(), 0, 1e-3).gradient_norm)
        norms.append((reported, float(torch.nn.utils.get_total_norm([p.grad for p in step.parameters()]))))
    (free, same), (before, after) = norms
    assert free == same == before
    assert after == pytest.approx(1e-3, rel=1e-3)


class Recorded(nn.Module):
    """What the objective was given, per call."""

    unused = r"objective\.backbone\.head\."

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective, self.seen = objective, []

    def corrupt(self, *arguments: Any) -> Any:
        return self.objective.corrupt(*arguments)

    def before_optimizer_step(self) -> None:
        self.objective.before_optimizer_step()

    def forward(self, batch: Batch, corruption: Any) -> ObjectiveOutput:
        self.seen.append((batch.images, *dataclasses.astuple(corruption)[:1], torch.rand(3)))
        return self.objective(batch, corruption)


def drawn(step: int, seed: int = 3, before: int = 0, **changes: Any) -> list[Tensor]:
    """Jittered images, what is hidden, and what drop path would draw."""
    settings = tiny_settings(seed=seed, **changes)
    recorded = Recorded(tiny_objective(settings))
    taken = make_step(settings, recorded)
    for number in range(before):
        taken(*images_and_tokens(), number, 1e-3)
    torch.manual_seed(before)
    recorded.seen.clear()
    taken(*images_and_tokens(), step, 1e-3)
    return [torch.cat(tensors) for tensors in zip(*recorded.seen, strict=True)]


def test_jitter_hiding_and_drop_path_are_functions_of_seed_and_step_only() -> None:
    expected = drawn(7)
    for index, other in enumerate(drawn(7, before=2)):
        assert torch.equal(expected[index], other)
    for index in range(2):  # drop path draws per forward pass
        assert torch.equal(expected[index], drawn(7, mechanics__micro_batch=3)[index])
    for changed in (drawn(8), drawn(7, seed=4)):
        assert all(not torch.equal(one, other) for one, other in zip(expected, changed, strict=True))


def test_objectives_see_the_same_images() -> None:
    assert torch.equal(drawn(7, objective__name="mim")[0], drawn(7, objective__name="mapet")[0])


class Exploding(MIM):
    """Makes the loss, or only its gradient, infinite at one step."""

    kind = "loss"

    def forward(self, batch: Batch, corruption: MaskCorruption, return_logits: bool = False) -> ObjectiveOutput:
        output = super().forward(batch, corruption, return_logits)
        if not self.explodes:
            return output
        return dataclasses.replace(output, loss_sum=self.explode(output.loss_sum))

    def explode(self, loss: Tensor) -> Tensor:
        if self.kind == "loss":
            return loss / 0
        return loss + (self.mask_token.sum() - self.mask_token.sum().detach()) * torch.tensor(3e38) * 3


@pytest.mark.parametrize("kind", ["loss", "gradient", "weights"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_nothing_moves_from_the_first_step_that_is_not_finite(kind: str, micro_batch: int | None) -> None:
    settings = tiny_settings(objective__name="mim", mechanics__micro_batch=micro_batch)
    objective = Exploding(tiny_objective(settings).backbone, VOCAB)
    objective.kind, objective.explodes = kind, False
    step = make_step(settings, objective)
    for number in range(2):
        step(*images_and_tokens(), number, 1e-3)
    assert int(step.halted_at) == -1
    if kind == "weights":
        objective.head.bias.data[3] = torch.nan
    else:
        objective.explodes = True
    weights = weights_of(objective)
    moments = {
        index: {name: value.clone() for name, value in state.items()}
        for index, state in step.optimizer.state_dict()["state"].items()
    }
    sums = step(*images_and_tokens(), 2, 1e-3)
    assert torch.isfinite(sums.loss) == (kind == "gradient")
    assert not torch.isfinite(sums.gradient_norm)
    objective.explodes = False
    step(*images_and_tokens(), 3, 1e-3)
    assert int(step.halted_at) == 2
    for name, value in objective.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, equal_nan=True)
    for index, state in step.optimizer.state_dict()["state"].items():
        assert_equal_weights(state, moments[index])


def test_an_empty_batch_is_survived() -> None:
    step = make_step(tiny_settings())
    sums = step(torch.zeros(0, 3, 16, 16, dtype=torch.uint8), torch.zeros(0, 16, dtype=torch.int64), 0, 1e-3)
    assert float(sums.targets) == float(sums.loss) == 0
    assert int(step.halted_at) == -1


class HidesNothing(MIM):
    """In every other step."""

    hides = True

    def corrupt(self, batch: Batch, generator: torch.Generator) -> MaskCorruption:
        self.hides = not self.hides
        return MaskCorruption(torch.full((len(batch.images), self.num_patches), self.hides))


@pytest.mark.parametrize("kind", ["no image", "nothing hidden"])
def test_r14_a_step_without_targets_moves_nothing(kind: str) -> None:
    """R14: neither by momentum nor by weight decay; and the next one moves again."""
    settings = tiny_settings()
    objective = tiny_objective(settings)
    step = make_step(settings, HidesNothing(objective.backbone, VOCAB) if kind == "nothing hidden" else objective)
    images, tokens = images_and_tokens()
    some = (images[:0], tokens[:0]) if kind == "no image" else (images, tokens)
    if kind == "no image":
        step(images, tokens, 0, 1e-3)
    before = weights_of(step.objective)
    assert float(step(*some, 1, 1e-3).targets) == 0
    assert_equal_weights(before, weights_of(step.objective))
    step(images, tokens, 2, 1e-3)
    assert any(not torch.equal(value, weights_of(step.objective)[name]) for name, value in before.items())


class Waiting(TorchDispatchMode):
    """Notes every operation for which a GPU would have to be waited for: numbers from the host, numbers to the host."""

    NAMES = ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(self.NAMES):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ["mim", "pim", "mapet"])
def test_after_the_first_a_step_waits_for_nothing_on_the_device(objective):
    step = make_step(tiny_settings(objective__name=objective, training__color_jitter=0.4))
    images, token_ids = images_and_tokens()
    step(images, token_ids, 0, 1e-3)
    with Waiting() as waiting:
        step(images, token_ids, 1, 1e-3)
    assert waiting.seen == []


@pytest.mark.parametrize("wait", [lambda x: x.new_tensor([1.0]), lambda x: torch.tensor([1.0]), lambda x: float(x.sum())])
def test_waiting_is_noticed(wait):
    with Waiting() as waiting:
        wait(torch.ones(3))
    assert waiting.seen
