from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from krepes_ooc.stages.fidelity.centred_rows import CentredRows
from krepes_ooc.stages.fidelity.logistic_regression import LogisticFit, fit_logistic

RNG = np.random.default_rng(31)


def example(classes: int, n: int = 250, m: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Columns of very different scales that share directions, and labels that follow some."""
    rows = RNG.normal(size=(n, m)) @ RNG.normal(size=(m, m)) * 10.0 ** RNG.uniform(-3, 3, m)
    rows += 10.0 * rows.std(axis=0)
    score = StandardScaler().fit_transform(rows) @ RNG.normal(size=(m, classes))
    return rows, (score + 2 * RNG.normal(size=score.shape)).argmax(axis=1)


def newton(rows: np.ndarray, label: np.ndarray, C: float) -> np.ndarray:
    """Dense Newton iteration on the objective, in standardised columns: probabilities of all rows.

    Every class has its own weights, but two classes share one column, as in scikit-learn.
    """
    X = np.hstack([StandardScaler().fit_transform(rows), np.ones((len(rows), 1))])
    n, d = X.shape
    classes = int(label.max()) + 1
    two = classes == 2
    penalty = np.diag([1.0 / C] * (d - 1) + [1e-12])
    W = np.zeros((d, 1 if two else classes))
    for _ in range(25):
        logits = X @ W
        both = np.hstack([np.zeros((n, 1)), logits]) if two else logits
        P = np.exp(both - both.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        E = P - np.eye(classes)[label]
        P, E = (P[:, 1:], E[:, 1:]) if two else (P, E)
        k = P.shape[1]
        H = np.kron(penalty, np.eye(k))
        for x, p in zip(X, P, strict=True):
            H += np.kron(np.outer(x, x), np.diag(p) - np.outer(p, p))
        gradient = X.T @ E + penalty @ W
        W = W - np.linalg.lstsq(H, gradient.ravel(), rcond=1e-13)[0].reshape(d, k)
    logits = X @ W
    both = np.hstack([np.zeros((n, 1)), logits]) if two else logits
    P = np.exp(both - both.max(axis=1, keepdims=True))
    return P / P.sum(axis=1, keepdims=True)


def fitted(rows: np.ndarray, label: np.ndarray, C: float = 1.0, most: int = 1000) -> LogisticFit:
    return fit_logistic(CentredRows.of(rows), label, C, most)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("C", [0.1, 1.0])
def test_probabilities_are_those_of_a_dense_newton_iteration(classes: int, C: float) -> None:
    rows, label = example(classes)
    found = fitted(rows, label, C)
    assert found.converged
    np.testing.assert_allclose(found.probability(rows), newton(rows, label, C), atol=2e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_probabilities_are_those_of_scikit_learn(classes: int) -> None:
    rows, label = example(classes, n=600)
    scale = StandardScaler().fit(rows)
    model = LogisticRegression(tol=1e-9, max_iter=20_000).fit(scale.transform(rows), label)
    expected = model.predict_proba(scale.transform(rows))
    np.testing.assert_allclose(fitted(rows, label).probability(rows), expected, atol=3e-4)


def test_another_regulariser_is_another_classifier() -> None:
    rows, label = example(2)
    strong, weak = (fitted(rows, label, C).probability(rows) for C in (1e-3, 1.0))
    assert np.abs(strong - weak).max() > 0.05
    assert np.ptp(strong[:, 0]) < np.ptp(weak[:, 0])


def test_wide_rows_of_small_eigenvalues_take_few_iterations() -> None:
    """Without the Gram matrix as a preconditioner the same limit is not enough."""
    n, m = 1200, 150
    basis = RNG.normal(size=(m, m))
    rows = RNG.normal(size=(n, m)) * 10.0 ** -np.linspace(0, 3, m) @ basis
    label = (rows @ np.linalg.solve(basis, RNG.normal(size=m)) > 0).astype(int)
    found = fitted(rows, label, most=80)
    assert found.converged
    X = StandardScaler().fit_transform(rows)
    plain = LogisticRegression(tol=1e-6, max_iter=80)
    with pytest.warns(Warning, match="failed to converge"):
        plain.fit(X, label)
    assert not fitted(rows, label, most=3).converged


def test_constant_columns_and_codes_with_gaps() -> None:
    rows, label = example(3)
    rows = np.hstack([rows, np.full((len(rows), 2), [0.1, 1e9])])
    codes = np.array([1, 4, 7])[label]
    found = fitted(rows, codes)
    assert found.classes.tolist() == [1, 4, 7]
    assert np.isfinite(found.weight).all()
    assert np.abs(found.weight[-2:]).max() < 1e-12
    without = fitted(rows[:, :-2], codes)
    np.testing.assert_allclose(
        found.probability(rows), without.probability(rows[:, :-2]), atol=1e-6
    )


def test_separable_classes_and_fewer_rows_than_columns() -> None:
    rows = RNG.normal(size=(20, 50))
    label = np.arange(20) % 2
    found = fitted(rows, label)
    assert found.converged
    assert (found.probability(rows).argmax(axis=1) == label).all()
    np.testing.assert_allclose(found.probability(rows), newton(rows, label, 1.0), atol=1e-3)


def test_one_gram_matrix_serves_ridge_and_probe() -> None:
    rows, _ = example(2)
    shared = CentredRows.of(rows)
    assert shared.gram is shared.gram
    X = rows - rows.mean(axis=0)
    np.testing.assert_allclose(shared.gram, X.T @ X, rtol=1e-12)
    values, V = shared.eigenpairs
    size = np.abs(shared.gram).max()
    np.testing.assert_allclose(V * values @ V.T, shared.gram, atol=1e-12 * size)
    np.testing.assert_allclose(shared.deviation, rows.std(axis=0), rtol=1e-9)
