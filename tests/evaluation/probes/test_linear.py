from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from mapet.errors import DataError, NonFiniteLossError, SettingsError
from mapet.evaluation.presets import protocol_of, setting_names
from mapet.evaluation.probes.images import order_of
from mapet.evaluation.probes.linear import LinearProbe
from mapet.evaluation.probes.linear_fit import Normaliser
from mapet.evaluation.validation_split import hold_out_rows
from tests.evaluation.planted import CLASSES, planted_frozen, without_test

FAST: dict[str, Any] = {"epochs": 30, "min_steps": 1, "batch_size": 32, "lr": 0.05}
SHORT: dict[str, Any] = FAST | {"epochs": 3}
SCALES = torch.logspace(-3, 3, 8)
OTHER = {"both": "cls", "last": "every", "standardise": "none", "adamw": "lars", "step": "epoch", "held_out": "test"}


def naive_probe(frozen, protocol: LinearProbe, lr: float, weight_decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight (D, C) and bias (C,) of a probe that a loop trains in float64, with AdamW written out."""
    raw, labels = frozen.train_features.mean.double().numpy(), frozen.train_features.labels.numpy()
    features = (raw - raw.mean(0)) / raw.std(0, ddof=1)
    weight, bias = np.zeros((features.shape[1], CLASSES)), np.zeros(CLASSES)
    moments = [[np.zeros_like(value), np.zeros_like(value)] for value in (weight, bias)]
    steps = list(order_of(len(labels), protocol.batch_size, protocol.seed, protocol.epochs))
    for step, rows in enumerate(steps):
        logits = features[rows] @ weight + bias
        shares = np.exp(logits - logits.max(1, keepdims=True))
        errors = shares / shares.sum(1, keepdims=True) - np.eye(CLASSES)[labels[rows]]
        rate = lr * (1 + math.cos(math.pi * step / len(steps))) / 2
        gradients = (features[rows].T @ errors / len(rows), errors.mean(0))
        for value, gradient, (first, second), decay in zip((weight, bias), gradients, moments, (weight_decay, 0), strict=True):
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            value *= 1 - rate * decay
            corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            value -= rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return weight, bias


def weights_of(fitted, layer: int = 0, rate: int = 0) -> tuple[np.ndarray, np.ndarray]:
    heads = fitted.heads
    return heads.weights[rate][layer].detach().numpy(), heads.biases[rate][layer, 0].detach().numpy()


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_cached_probe_is_that_of_a_loop_in_float64(weight_decay: float) -> None:
    frozen, protocol = planted_frozen(scale=SCALES), LinearProbe(**SHORT, weight_decay=weight_decay)
    weight, bias = naive_probe(frozen, protocol, 0.05, weight_decay)
    found = weights_of(protocol.fit(frozen)[0])
    np.testing.assert_allclose(found[0], weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1], bias, rtol=1e-3, atol=1e-5)
    raw, test = frozen.train_features.mean.double(), frozen.test_features
    scores = ((test.mean.double() - raw.mean(0)) / raw.std(0)).numpy() @ weight + bias
    assert protocol.evaluate(frozen).values["top1"] == np.mean(scores.argmax(1) == test.labels.numpy())


def test_candidates_are_trained_as_if_each_were_alone() -> None:
    frozen, rates = planted_frozen(), [(lr, decay) for lr in (1e-3, 0.1) for decay in (0.0, 0.3)]
    several = LinearProbe(**SHORT | {"lr": (1e-3, 0.1)}, weight_decay=(0.0, 0.3))
    assert [dataclasses.astuple(rate) for rate in several.candidates] == rates
    fitted, _ = several.fit(frozen)
    for number, (lr, decay) in enumerate(rates):
        weight, bias = naive_probe(frozen, several, lr, decay)
        np.testing.assert_allclose(weights_of(fitted, rate=number)[0], weight, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(weights_of(fitted, rate=number)[1], bias, rtol=1e-3, atol=1e-5)


def test_the_choice_is_made_on_images_that_were_not_learned_from() -> None:
    frozen, rates = planted_frozen(noise=1.0, train=60), (1e-4, 3e-3, 0.1, 3.0)
    protocol = LinearProbe(**FAST | {"lr": rates, "batch_size": 1024}, held_out_share=0.3)
    fitted, shares = protocol.fit(without_test(frozen))
    assert shares is not None
    validation_split = hold_out_rows(frozen.train_features.labels, 0.3, 0)
    labels = frozen.train_features.labels
    raw = frozen.train_features.mean
    frozen.train_features = dataclasses.replace(
        frozen.train_features, mean=raw[~validation_split], labels=labels[~validation_split]
    )
    features = ((raw - raw.mean(0)) / raw.std(0)).double().numpy()
    expected = []
    for lr in rates:
        weight, bias = whole_batch_probe(features[~validation_split], labels[~validation_split].numpy(), lr, 30)
        answers = (features[validation_split] @ weight + bias).argmax(1)
        expected.append(np.mean(answers == labels[validation_split].numpy()))
    assert shares[0].tolist() == pytest.approx(expected)
    assert len(set(expected)) > 1
    assert expected[fitted.chosen[1]] == max(expected)


def whole_batch_probe(features: np.ndarray, labels: np.ndarray, lr: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """As many steps of torch's own AdamW, float64, on all rows at once."""
    weight, bias = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in ((8, CLASSES), (CLASSES,)))
    optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], weight_decay=1e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(torch.from_numpy(features) @ weight + bias, torch.from_numpy(labels)).backward()
        optimizer.step()
    return weight.detach().numpy(), bias.detach().numpy()


def test_what_is_judged_has_learned_from_all_training_images() -> None:
    frozen = planted_frozen(noise=1.0)
    fitted, _ = LinearProbe(**SHORT | {"lr": (1e-3, 0.1)}).fit(frozen)
    (alone, none) = LinearProbe(**SHORT | {"lr": fitted.heads.candidates[fitted.chosen[1]].lr}).fit(frozen)
    assert none is None
    np.testing.assert_allclose(weights_of(fitted, rate=fitted.chosen[1])[0], weights_of(alone)[0], rtol=1e-4, atol=1e-6)


def test_test_labels_change_nothing_that_is_trained_or_chosen() -> None:
    frozen, protocol = planted_frozen(noise=1.0), LinearProbe(**SHORT | {"lr": (1e-3, 0.1)})
    honest, _ = protocol.fit(without_test(frozen))
    found = protocol.evaluate(frozen).details
    test = frozen.test_features
    frozen.test_features = dataclasses.replace(test, labels=(test.labels + 1) % CLASSES)
    after, _ = protocol.fit(frozen)
    assert all(torch.equal(one, other) for one, other in zip(honest.heads.weights, after.heads.weights, strict=True))
    again = protocol.evaluate(frozen).details
    assert found["chosen"] == again["chosen"]
    validation_split = [[entry["held_out_top1"] for entry in details["candidates"]] for details in (found, again)]
    assert validation_split[0] == validation_split[1]
    assert [entry["test_top1"] for entry in found["candidates"]] != [entry["test_top1"] for entry in again["candidates"]]


def test_the_published_way_takes_the_best_epoch_on_the_test_images() -> None:
    frozen = planted_frozen(noise=1.0)
    protocol = LinearProbe(**FAST | {"lr": (1e-3, 0.3), "epochs": 8}, choose="test")
    seen = []
    test = frozen.test_features
    protocol.fit(frozen, lambda epoch, fitted: seen.append(fitted.evaluate(test.mean[:, None], test.labels)[0].clone()))
    found = protocol.evaluate(frozen)
    assert len(seen) == 8
    assert found.values["top1"] == float(torch.stack(seen).max())
    best = int(torch.stack(seen).flatten(1).max(dim=1).values.argmax())
    assert found.details["chosen"]["epoch"] == best + 1
    assert found.details["chosen_on"] == "test"
    assert [entry["test_top1"] for entry in found.details["candidates"]] == seen[-1].flatten().tolist()
    assert "held_out_top1" not in found.details["candidates"][0]


@pytest.mark.parametrize("normalise", ["standardise", "batch_norm"])
def test_separable_features_are_learned_whatever_their_scale(normalise: str) -> None:
    frozen = planted_frozen(noise=0.1, scale=SCALES * (1e3 if normalise == "batch_norm" else 1))  # BatchNorm adds an eps
    assert LinearProbe(**FAST, normalise=normalise).evaluate(frozen).values["top1"] == 1.0


def test_random_labels_are_not() -> None:
    probe = LinearProbe(**FAST | {"batch_size": 250})
    accuracy = probe.evaluate(planted_frozen(noise=1e6, train=1000, test=1000)).values["top1"]
    assert accuracy == pytest.approx(0.25, abs=0.06)


def test_the_same_seed_gives_the_same_figure() -> None:
    frozen = planted_frozen(noise=1.0)
    one, other, third = (LinearProbe(**SHORT, init_std=0.01, seed=seed).fit(frozen)[0] for seed in (0, 0, 1))
    assert np.array_equal(weights_of(one)[0], weights_of(other)[0])
    assert not np.array_equal(weights_of(one)[0], weights_of(third)[0])


def test_few_images_are_passed_over_more_often(monkeypatch) -> None:
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (seen.append(1), step(self)))
    LinearProbe(epochs=1, min_steps=17, batch_size=1024).evaluate(planted_frozen())
    assert len(seen) == 17
    note = LinearProbe(epochs=1, min_steps=17, batch_size=120).note(120)
    assert note == "17 epochs in place of 1, to take at least 17 steps (min_steps)."
    assert LinearProbe(epochs=17, min_steps=17, batch_size=120).note(120) == ""


@pytest.mark.parametrize("value", [0.0, 5.0, 1234.567])
def test_a_constant_feature_divides_nothing_by_zero(value: float) -> None:
    frozen = planted_frozen(noise=0.1)
    for part in (frozen.train_features, frozen.test_features):
        part.mean[:, 7] = value
    fitted, _ = LinearProbe(**FAST).fit(frozen)
    normalised = fitted.normaliser(frozen.train_features.mean[:, None])
    assert normalised[:, 0, 7].abs().max() < 1e-2
    assert LinearProbe(**FAST).evaluate(frozen).values["top1"] == 1.0


def test_batch_norm_has_no_parameters_and_follows_the_batches() -> None:
    normaliser = Normaliser(2, 8)
    assert [*normaliser.parameters()] == []
    features = 3 + 2 * torch.randn(500, 2, 8, generator=torch.Generator().manual_seed(0))
    expected = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(normaliser.train()(features), expected)


def test_a_probe_that_diverged_is_never_chosen_and_never_judged() -> None:
    frozen = planted_frozen(scale=1e4)
    settings = SHORT | {"normalise": "none"}
    fitted, shares = LinearProbe(**settings | {"lr": (1e37, 1e-6)}).fit(frozen)
    assert shares is not None
    assert fitted.chosen == (0, 1)
    with pytest.raises(NonFiniteLossError, match=r"diverged with lr=1e\+37. Give a lower one"):
        LinearProbe(**settings | {"lr": 1e37}).evaluate(frozen)
    with pytest.raises(NonFiniteLossError, match="no learning rate that was tried is low enough"):
        LinearProbe(**settings | {"lr": (1e37, 2e37)}).evaluate(frozen)


def test_the_schedule_moves_by_step_or_by_epoch(monkeypatch) -> None:
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    settings = FAST | {"epochs": 4, "batch_size": 60, "lr": 1.0}
    LinearProbe(**settings).fit(planted_frozen())
    assert rates == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    rates.clear()
    LinearProbe(**settings, schedule="epoch").fit(planted_frozen())
    assert rates == pytest.approx([(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(2)])
    rates.clear()
    LinearProbe(**settings, warmup_epochs=1).fit(planted_frozen())
    assert rates == pytest.approx([0, 0.5, *((1 + math.cos(math.pi * step / 6)) / 2 for step in range(6))])


def test_every_class_gives_its_share_and_keeps_an_image() -> None:
    labels = torch.tensor([0] * 40 + [1] * 21 + [2])[torch.randperm(62, generator=torch.Generator().manual_seed(0))]
    validation_split = hold_out_rows(labels, 0.1, seed=0)
    assert torch.bincount(labels[validation_split], minlength=3).tolist() == [4, 2, 0]
    assert torch.equal(validation_split, hold_out_rows(labels, 0.1, seed=0))
    assert not torch.equal(validation_split, hold_out_rows(labels, 0.1, seed=1))
    few = torch.tensor([0, 0, 1, 1, 2])
    assert torch.bincount(few[hold_out_rows(few, 0.1, seed=0)], minlength=3).tolist() == [1, 1, 0]
    assert torch.bincount(few[hold_out_rows(few, 0.99, seed=0)], minlength=3).tolist() == [1, 1, 0]
    with pytest.raises(DataError, match="None of the 3 training images can be held out"):
        hold_out_rows(torch.arange(3), 0.5, seed=0)


@pytest.mark.parametrize("name", setting_names(LinearProbe))
def test_the_hash_changes_with_every_setting(name: str) -> None:
    value = getattr(LinearProbe(), name)
    changed = dataclasses.replace(LinearProbe(), **{name: OTHER[value] if isinstance(value, str) else value + 1})
    assert changed.hash != LinearProbe().hash


def test_one_rate_in_a_list_is_that_rate() -> None:
    frozen = planted_frozen()
    assert LinearProbe(**SHORT | {"lr": (0.05,)}).evaluate(frozen) == LinearProbe(**SHORT).evaluate(frozen)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("paper", {"augment": True, "normalise": "none", "crop_fraction": 0.9, "epochs": 50, "batch_size": 1024, "lr": 4e-3}),
        ("beit", {"layers": "every", "pool": "both", "init_std": 0.01, "epochs": 100, "schedule": "epoch", "weight_decay": 1e-4}),
        ("cae", {"optimizer": "lars", "normalise": "batch_norm", "lr": 0.1 * 16384 / 256, "warmup_epochs": 10, "weight_decay": 0}),
    ],
)
def test_presets_have_the_published_settings(preset: str, settings: dict[str, Any]) -> None:
    described = protocol_of(f"linear:{preset}").describe()
    assert {name: described[name] for name in settings} == settings
    assert protocol_of("linear:beit_published").hash == dataclasses.replace(protocol_of("linear:beit"), choose="test").hash


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"held_out_share": 1.0}, "held_out_share = 1 "),
        ({"lr": [0.1, -1.0]}, "lr"),
        ({"lr": []}, "empty list"),
        ({"optimizer": "lars", "layers": "every"}, "Use optimizer=adamw"),
        ({"optimizer": "sgd"}, "optimizer = 'sgd'"),
        ({"crop_fraction": 1.5}, "crop_fraction = 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        protocol_of("linear", settings)


def test_standardised_features_need_no_epsilon() -> None:
    """torch 2.11 refuses an epsilon of 0; the one in its place changes no bit."""
    features = torch.randn(50, 1, 6, generator=torch.Generator().manual_seed(0)) * 1e-5 + 3
    normaliser = Normaliser(1, 6)
    normaliser.standardise(features)
    variance = normaliser.running_var
    assert normaliser.eps > 0
    assert torch.equal(variance + normaliser.eps, variance)
    assert torch.equal(variance.double() + normaliser.eps, variance.double())
