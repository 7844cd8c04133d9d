from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from mapet.errors import SettingsError
from mapet.evaluation.presets import protocol_of, setting_names
from mapet.evaluation.probes.logistic import LogisticProbe, choose_penalty, standardised, warn_unless_converged
from mapet.evaluation.probes.logistic_regression import fit_logistic, fit_path
from mapet.evaluation.validation_split import hold_out_rows
from tests.evaluation.planted import CLASSES, planted_frozen


def problem(noise: float = 1.0, train: int = 90) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frozen = planted_frozen(noise=noise, train=train)
    return *standardised(frozen.train_features.mean, frozen.test_features.mean), frozen.train_features.labels  # type: ignore[return-value]


def reference(features: np.ndarray, labels: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray, float]:
    """SciPy's solution, of the problem written out."""
    rows, size = features.shape

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: size * CLASSES].reshape(size, CLASSES), flat[size * CLASSES :]
        logits = features @ weight + bias
        total = logsumexp(logits, axis=1)
        errors = (np.exp(logits - total[:, None]) - np.eye(CLASSES)[labels]) / rows
        loss = float((total - logits[np.arange(rows), labels]).mean() + l2 / 2 * (weight**2).sum())
        return loss, np.concatenate([(features.T @ errors + l2 * weight).ravel(), errors.sum(0)])

    start = np.zeros((size + 1) * CLASSES)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10})
    return found.x[: size * CLASSES].reshape(size, CLASSES), found.x[size * CLASSES :], found.fun


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_the_solution_is_that_of_scipy(l2: float) -> None:
    features, _, labels = problem()
    model = fit_logistic(features, labels, CLASSES, l2, tolerance=1e-8)
    weight, bias, loss = reference(features.numpy(), labels.numpy(), l2)
    assert model.converged
    assert model.loss == pytest.approx(loss, abs=1e-10)
    np.testing.assert_allclose(model.weight.numpy(), weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.scores(features).softmax(1).numpy(), softmax(features.numpy() @ weight + bias), atol=1e-5)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


def test_the_solution_is_that_of_scikit_learn() -> None:
    features, others, labels = problem()
    l2 = 0.02
    theirs = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=5000).fit(features.numpy(), labels.numpy())
    ours = fit_logistic(features, labels, CLASSES, l2, tolerance=1e-8)
    np.testing.assert_allclose(ours.scores(others).softmax(1).numpy(), theirs.predict_proba(others.numpy()), atol=1e-5)


def test_a_path_ends_where_each_would_alone() -> None:
    features, others, labels = problem()
    path = fit_path(features, labels, CLASSES, (1e-3, 1.0, 1e-1))
    assert list(path) == [1.0, 1e-1, 1e-3]
    for l2, model in path.items():
        alone = fit_logistic(features, labels, CLASSES, l2)
        torch.testing.assert_close(model.scores(others).softmax(1), alone.scores(others).softmax(1), rtol=0, atol=1e-3)


def test_correlated_features_take_dozens_of_iterations() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (400,), generator=generator)
    hidden = torch.randn(400, 8, generator=generator).double() + torch.nn.functional.one_hot(labels, 8)
    mixing = torch.randn(8, 24, generator=generator).double() * torch.logspace(0, -3, 8)[:, None]
    (features,) = standardised(hidden @ mixing)
    model = fit_logistic(features, labels, CLASSES, 1e-5)
    weight, bias, loss = reference(features.numpy(), labels.numpy(), 1e-5)
    assert model.converged
    assert model.iterations < 50
    assert model.loss <= loss + 1e-8
    np.testing.assert_allclose(model.scores(features).numpy(), features.numpy() @ weight + bias, atol=0.05)


def test_no_convergence_is_said(capsys) -> None:
    features, _, labels = problem()
    model = fit_logistic(features, labels, CLASSES, 1e-6, max_iterations=3)
    assert not model.converged
    assert model.gradient > 1e-5
    assert model.iterations == 3
    warn_unless_converged(model, "planted")
    assert "not converged after 3 iterations" in capsys.readouterr().err
    warn_unless_converged(fit_logistic(features, labels, CLASSES, 1.0), "planted")
    assert capsys.readouterr().err == ""


def test_standardised_is_by_the_training_part_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 3, generator=generator) * 7 + 2, torch.randn(20, 3, generator=generator)
    train[:, 2] = test[:, 2] = 1234.567
    ours, theirs = standardised(train, test)
    learned, evaluated = train[:, :2].double().numpy(), test[:, :2].double().numpy()
    np.testing.assert_allclose(theirs[:, :2].numpy(), (evaluated - learned.mean(0)) / learned.std(0))
    assert theirs[:, 2].abs().max() < 1e-6
    torch.testing.assert_close(ours[:, :2].std(dim=0, correction=0), torch.ones(2, dtype=torch.float64))


def test_the_penalty_is_chosen_on_a_held_out_part() -> None:
    features, _, labels = problem(noise=1.5, train=60)
    penalties = (1e-6, 1e-2, 1e-1, 100.0)
    l2, found = choose_penalty(features, labels, CLASSES, penalties, 0.3, seed=0)
    validation_split = hold_out_rows(labels, 0.3, seed=0).numpy()
    shares = {}
    for penalty in penalties:
        weight, bias, _ = reference(features.numpy()[~validation_split], labels.numpy()[~validation_split], penalty)
        answers = (features.numpy()[validation_split] @ weight + bias).argmax(1)
        shares[f"{penalty:g}"] = float(np.mean(answers == labels.numpy()[validation_split]))
    assert found == {"held_out_top1": pytest.approx(shares)}
    assert len(set(shares.values())) > 1
    assert shares[f"{l2:g}"] == max(shares.values())


def test_the_figure_is_that_of_the_chosen_penalty_on_all_images() -> None:
    frozen = planted_frozen(noise=1.0)
    found = LogisticProbe().evaluate(frozen)
    features, others = standardised(frozen.train_features.mean, frozen.test_features.mean)
    weight, bias, _ = reference(features.numpy(), frozen.train_features.labels.numpy(), found.details["l2"])
    answers = (others.numpy() @ weight + bias).argmax(1)
    assert found.values["top1"] == np.mean(answers == frozen.test_features.labels.numpy())
    assert found.details["converged"] is True
    assert LogisticProbe(l2=found.details["l2"]).evaluate(frozen).values == found.values


def test_test_labels_choose_nothing() -> None:
    frozen = planted_frozen(noise=1.0)
    found = LogisticProbe().evaluate(frozen)
    test = frozen.test_features
    frozen.test_features = dataclasses.replace(test, labels=(test.labels + 1) % CLASSES)
    again = LogisticProbe().evaluate(frozen)
    assert found.details == again.details
    assert found.values != again.values


@pytest.mark.parametrize("name", setting_names(LogisticProbe))
def test_the_hash_changes_with_every_setting(name: str) -> None:
    changes: dict[str, Any] = {"pool": "cls", "l2": 0.5, "held_out_share": 0.2, "seed": 1}
    assert dataclasses.replace(LogisticProbe(), **{name: changes[name]}).hash != LogisticProbe().hash


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match="l2"):
        protocol_of("logistic", {"l2": -1.0})
