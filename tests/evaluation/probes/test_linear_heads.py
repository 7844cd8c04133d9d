from __future__ import annotations

import numpy as np
import pytest
import torch

from mapet.evaluation.probes.linear_heads import Candidate, LinearHeads, cosine, train_heads

LAYERS, FEATURES, CLASSES = 3, 5, 4


def make_heads(*candidates: Candidate, layers: int = LAYERS, init_std: float = 0.3) -> LinearHeads:
    return LinearHeads(list(candidates), layers, FEATURES, CLASSES, init_std, seed=0)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, LAYERS, FEATURES, generator=generator), torch.randint(CLASSES, (30,), generator=generator)


def test_scores_and_losses_are_those_of_layers_one_by_one(batch) -> None:
    features, labels = batch
    heads = make_heads(Candidate(0.1, 0.0), Candidate(0.2, 0.0))
    torch.nn.init.normal_(heads.biases[1], generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(heads.weights[1], generator=torch.Generator().manual_seed(2))
    heads.requires_grad_(False)
    scores, total = heads(features), 0.0
    assert scores.shape == (30, LAYERS, 2, CLASSES)
    for layer in range(LAYERS):
        for candidate in range(2):
            weight, bias = heads.weights[candidate][layer].double(), heads.biases[candidate][layer, 0].double()
            expected = features[:, layer].double() @ weight + bias
            torch.testing.assert_close(scores[:, layer, candidate].double(), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(heads.scores_of(features, layer, candidate), scores[:, layer, candidate])
            total += float(torch.nn.functional.cross_entropy(expected, labels))
    assert float(heads.loss(features, labels)) == pytest.approx(total, rel=1e-5)


def test_images_that_do_not_count_are_not_learned_from(batch) -> None:
    features, labels = batch
    counted = torch.arange(30) % 3 > 0
    heads = make_heads(Candidate(0.1, 0.0))
    heads.loss(features, labels, counted).backward()
    gradient = heads.weights[0].grad
    twin = make_heads(Candidate(0.1, 0.0))
    twin.loss(features[counted], labels[counted]).backward()
    torch.testing.assert_close(gradient, twin.weights[0].grad)
    assert heads.loss(features, labels, torch.zeros(30, dtype=torch.bool)).item() == 0.0


def test_judging_counts_right_answers_of_every_layer(batch, monkeypatch) -> None:
    from mapet.evaluation.probes import linear_heads

    monkeypatch.setattr(linear_heads, "_CHUNK", 7)
    features, labels = batch
    heads = make_heads(Candidate(0.1, 0.0), Candidate(0.2, 0.0))
    torch.nn.init.constant_(heads.weights[1], float("nan"))
    right, losses = heads.evaluate(features, labels)
    for layer in range(LAYERS):
        scores = heads.scores_of(features, layer, 0)
        assert float(right[layer, 0]) == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
        assert float(losses[layer, 0]) == pytest.approx(float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5)
    assert right[:, 1].tolist() == [0.0] * LAYERS
    assert losses[:, 1].isnan().all()


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_scales_the_step_of_the_weight_and_not_that_of_the_bias(batch, decay: float) -> None:
    features, labels = batch[0][:, :1], batch[1]
    heads = make_heads(Candidate(2.0, decay), layers=1)
    weight, bias = heads.weights[0][0].detach().double().numpy().copy(), np.zeros(CLASSES)
    train_heads([heads], iter([(features, labels, [None])] * 4), "lars", lambda step: 1 - step / 4, lambda done: None)
    momentum = [np.zeros_like(weight), np.zeros_like(bias)]
    rows = features[:, 0].double().numpy()
    for step in range(4):
        logits = rows @ weight + bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        errors = shares - np.eye(CLASSES)[labels.numpy()]
        of_weight, of_bias = rows.T @ errors / len(rows), errors.mean(0)
        size = np.linalg.norm(weight)
        trust = 0.001 * size / (np.linalg.norm(of_weight) + decay * size)
        momentum[0] = 0.9 * momentum[0] + trust * (of_weight + decay * weight)
        momentum[1] = 0.9 * momentum[1] + of_bias
        weight -= 2.0 * (1 - step / 4) * momentum[0]
        bias -= 2.0 * (1 - step / 4) * momentum[1]
    np.testing.assert_allclose(heads.weights[0][0].detach().numpy(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(heads.biases[0][0, 0].detach().numpy(), bias, rtol=1e-4, atol=1e-6)


def test_all_rates_start_alike_and_every_layer_by_itself() -> None:
    heads = make_heads(Candidate(0.1, 0.0), Candidate(0.2, 0.0), init_std=0.01)
    assert torch.equal(heads.weights[0], heads.weights[1])
    assert not torch.equal(heads.weights[0][0], heads.weights[0][1])
    large = LinearHeads([Candidate(1.0, 0.0)], 1, 400, 100, 0.01, seed=0).weights[0]
    assert large.std().item() == pytest.approx(0.01, rel=0.02)
    assert not heads.biases[0].any()


def test_the_cosine_begins_behind_the_warm_up() -> None:
    assert [cosine(position, 12, 2) for position in (0, 1, 2, 7, 12)] == pytest.approx([0, 0.5, 1, 0.5, 0])
