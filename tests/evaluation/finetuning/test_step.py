from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from mapet.data.views import normalise
from mapet.engine.optimizer import adamw, layer_groups
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.protocol import FineTune
from mapet.evaluation.finetuning.step import FineTuneStep
from tests.evaluation.finetuning.tiny import CPU, quick, tiny_frozen
from tests.tiny import assert_equal_weights, weights_of

IMAGES = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])


def step_of(settings: FineTune) -> FineTuneStep:
    model, spec, _ = build_classifier(tiny_frozen(), settings)
    groups = layer_groups(model, 2, settings.layer_decay, settings.weight_decay)
    return FineTuneStep(model.train(), adamw(groups, settings.betas, settings.eps), settings, spec, CPU)


def normalised(step: FineTuneStep, images: Tensor = IMAGES) -> Tensor:
    return normalise(images, step.spec.mean, step.spec.std)


def test_plain_images_and_smoothed_labels() -> None:
    step = step_of(quick(smoothing=0.2))
    inputs, targets = step.prepare(IMAGES, LABELS, step=3)
    assert torch.equal(inputs, normalised(step))
    torch.testing.assert_close(targets, 0.8 * one_hot(LABELS, 2) + 0.1)


def test_the_loss_is_smoothed_cross_entropy_and_the_move_is_adamw() -> None:
    settings = quick(drop_path=0.0, clip_norm=0.05, layer_decay=0.5, weight_decay=0.3, lr=1e-2, eps=0.1)
    step = step_of(settings)
    reference = copy.deepcopy(step.model).double()
    found = step(IMAGES, LABELS, 0, 1e-2)
    targets = 0.9 * one_hot(LABELS, 2).double() + 0.05
    loss = -(targets * log_softmax(reference(normalised(step).double()), dim=1)).sum(dim=1).mean()
    loss.backward()
    assert float(found.loss) / 8 == pytest.approx(loss.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    assert float(found.gradient_norm) == pytest.approx(float(norm), rel=1e-4)
    assert norm > 0.05, "else nothing is clipped"
    for name, parameter in reference.named_parameters():
        layer = 0 if "embed" in name or name == "cls_token" else int(name.split(".")[1]) + 1 if "blocks" in name else 3
        rate, gradient = 1e-2 * 0.5 ** (3 - layer), gradients[name] * 0.05 / norm
        decay = 0.0 if parameter.ndim == 1 or name in ("cls_token", "pos_embed") else 0.3
        moved = parameter * (1 - rate * decay) - rate * gradient / (gradient.abs() + 0.1)  # Adam's first step
        own = step.model.get_parameter(name).detach().double()
        torch.testing.assert_close(own, moved.detach(), rtol=1e-6, atol=1e-7)


def test_micro_batches_change_nothing() -> None:
    whole, parts = (step_of(quick(drop_path=0.5, micro_batch=size)) for size in (None, 3))
    norms = [step(IMAGES, LABELS, 0, 0.0).gradient_norm for step in (whole, parts)]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    assert quick(micro_batch=3, drop_path=0.1).hash == quick(drop_path=0.1).hash != quick(batch_size=4, drop_path=0.1).hash


def test_mixup_is_a_weighted_mean_of_images_and_labels() -> None:
    step = step_of(quick(mixup=0.8, smoothing=0.0))
    shares = set()
    for number in range(6):
        inputs, targets = step.prepare(IMAGES, LABELS, number)
        plain, other = one_hot(LABELS, 2).float(), one_hot(LABELS.flip(0), 2).float()
        (pairs,) = (plain != other).any(dim=1).nonzero(as_tuple=True)
        share = float((targets[pairs[0]] * plain[pairs[0]]).sum())
        torch.testing.assert_close(targets, share * plain + (1 - share) * other)
        images = normalised(step)
        torch.testing.assert_close(inputs, share * images + (1 - share) * images.flip(0), rtol=1e-4, atol=1e-5)
        shares.add(round(share, 6))
    assert len(shares) == 6, "every step draws its own share"


def test_cutmix_labels_are_shares_of_the_area() -> None:
    step = step_of(quick(cutmix=1.0, smoothing=0.0))
    images, seen = normalised(step), set()
    for number in range(6):
        inputs, targets = step.prepare(IMAGES, LABELS, number)
        replaced = (inputs != images).any(dim=1)
        assert torch.equal(inputs[replaced[:, None].expand_as(inputs)], images.flip(0)[replaced[:, None].expand_as(inputs)])
        rows, columns = replaced[0].any(dim=1).sum(), replaced[0].any(dim=0).sum()
        share = 1 - float(rows * columns) / 256
        torch.testing.assert_close(targets, share * one_hot(LABELS, 2).float() + (1 - share) * one_hot(LABELS.flip(0), 2).float())
        seen.add(share)
    assert len(seen) > 3
    _, smoothed = step_of(quick(cutmix=1.0, smoothing=0.2)).prepare(IMAGES, LABELS, 5)
    torch.testing.assert_close(smoothed, 0.8 * targets + 0.1)


def test_shares_of_mixed_batches() -> None:
    images = IMAGES.repeat(2, 1, 1, 1)[:4]
    for settings, expected in ((quick(mixup=0.8, mix_prob=0.0), 0), (quick(mixup=0.8, mix_prob=1.0), 40)):
        step = step_of(settings)
        mixed = [not torch.equal(step.prepare(images, LABELS[:4], number)[0], normalised(step, images)) for number in range(40)]
        assert sum(mixed) == expected


def test_a_rectangle_of_some_images_becomes_noise() -> None:
    step = step_of(quick(erasing=0.5))
    images = IMAGES.repeat(25, 1, 1, 1)
    inputs, _ = step.prepare(images, LABELS.repeat(25), 0)
    changed = (inputs != normalised(step, images)).any(dim=1)
    erased = changed.flatten(1).any(dim=1)
    assert 70 < erased.sum() < 130
    noise = torch.cat([image[:, mask].flatten() for image, mask in zip(inputs[erased], changed[erased], strict=True)])
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)


def test_mixing_erasing_and_drop_path_are_functions_of_seed_and_step() -> None:
    settings = quick(mixup=0.8, cutmix=1.0, erasing=0.5, drop_path=0.5)
    first = step_of(settings)
    weights = weights_of(first.model)
    losses = []
    for number in (4, 4, 5):
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(len(losses))
        again = step_of(settings)
        again.model.load_state_dict(weights)
        losses.append(float(again(IMAGES, LABELS, number, 0.0).loss))
    assert losses[0] == losses[1] != losses[2]
    other = step_of(quick(mixup=0.8, cutmix=1.0, erasing=0.5, drop_path=0.5, seed=1))
    assert not torch.equal(other.prepare(IMAGES, LABELS, 4)[0], first.prepare(IMAGES, LABELS, 4)[0])


def test_drop_path_is_drawn_per_step_and_grows_with_depth() -> None:
    step = step_of(quick(drop_path=0.5))
    assert [block.drop_path1.drop_prob if hasattr(block.drop_path1, "drop_prob") else 0.0 for block in step.model.blocks] == [
        0.0,
        0.5,
    ]
    losses = [float(step(IMAGES, LABELS, number, 0.0).loss) for number in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("planted", ["nan", "inf"])
def test_nothing_moves_from_a_loss_that_is_not_finite(planted: str) -> None:
    step = step_of(quick())
    step(IMAGES, LABELS, 0, 1e-3)
    with torch.no_grad():
        step.model.head.bias[0] = float(planted)
    before = weights_of(step.model)
    for number in (1, 2):
        step(IMAGES, LABELS, number, 1e-3)
    assert_equal_weights({name: value.nan_to_num(7) for name, value in before.items()}, weights_without_nan(step))
    assert int(step.halted_at) == 1


def weights_without_nan(step: FineTuneStep) -> dict[str, Tensor]:
    return {name: value.nan_to_num(7) for name, value in weights_of(step.model).items()}


def test_an_odd_batch_is_mixed_without_its_last_image() -> None:
    step = step_of(quick(mixup=0.8))
    inputs, targets = step.prepare(IMAGES[:5], LABELS[:5], 0)
    assert len(inputs) == len(targets) == 4


def test_bf16_is_close_to_fp32() -> None:
    losses = [float(step_of(quick(drop_path=0.0, precision=name))(IMAGES, LABELS, 0, 1e-3).loss) for name in ("fp32", "bf16")]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
    model = step_of(quick()).model.eval()
    assert cross_entropy(model(normalised(step_of(quick()))), LABELS).dtype == torch.float32


def test_bf16_ends_with_the_logits() -> None:
    step = step_of(quick(drop_path=0.0, precision="bf16", smoothing=0.1))
    torch.nn.init.normal_(step.model.head.weight, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = step.model(normalised(step))
    assert logits.dtype == torch.bfloat16
    expected = cross_entropy(logits.float(), 0.9 * one_hot(LABELS, 2) + 0.05, reduction="sum")
    torch.testing.assert_close(step(IMAGES, LABELS, 0, 1e-3).loss, expected, rtol=1e-6, atol=0)
