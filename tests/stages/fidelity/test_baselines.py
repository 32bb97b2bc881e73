from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity import baselines

RNG = np.random.default_rng(7)


def labelled(n: int = 40, h: int = 4, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    label = RNG.integers(classes, size=n)
    return RNG.normal(size=(n, h)) + 1.5 * np.eye(classes, h)[label], label


def test_cosine_is_the_cosine_and_zero_rows_give_zero() -> None:
    x, y = RNG.normal(size=(3, 5)), np.vstack([RNG.normal(size=(2, 5)), np.zeros(5)])
    found = baselines.cosine(x, y)
    assert found[1, 0] == pytest.approx(x[1] @ y[0] / np.linalg.norm(x[1]) / np.linalg.norm(y[0]))
    assert (found[:, 2] == 0).all()


@given(st.floats(0.1, 10), st.integers(0, 100))
def test_cosine_is_bounded_and_blind_to_scale(scale: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(3, 4)), draw.normal(size=(2, 4))
    assert baselines.cosine(scale * x, y) == pytest.approx(baselines.cosine(x, y))
    assert np.abs(baselines.cosine(x, y)).max() <= 1 + 1e-12


def test_fourier_features_approximate_the_gaussian_kernel() -> None:
    x = RNG.normal(size=(60, 6))
    mapped = baselines.FourierMap.draw(x, 4000, seed=1)
    distance = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    width = np.median(distance[np.triu_indices(60, 1)])
    rows = mapped.rows(x)
    assert rows @ rows.T == pytest.approx(np.exp(-distance / (2 * width)), abs=0.12)


@pytest.mark.parametrize("n", [1, 5])
def test_fourier_features_need_inputs_that_differ(n: int) -> None:
    with pytest.raises(StageFailed, match="the inputs are alike; expected varied inputs"):
        baselines.FourierMap.draw(np.ones((n, 3)), 8, seed=0)


def test_the_probe_is_the_regularised_optimum() -> None:
    rows, label = labelled()
    probe = baselines.LinearProbe.fit(rows, label, 3, damping=0.05)
    model = LogisticRegression(
        C=1 / (0.05 * len(rows)), fit_intercept=False, tol=1e-10, max_iter=5000
    )
    model.fit(probe.design(rows), label)
    assert probe.probability(rows) == pytest.approx(
        model.predict_proba(probe.design(rows)), abs=1e-4
    )


def test_the_probe_needs_two_classes_and_few_unknowns() -> None:
    with pytest.raises(StageFailed, match="a linear probe is not defined; expected at least two"):
        baselines.LinearProbe.fit(np.eye(3), np.zeros(3, dtype=np.int64), 2)
    with pytest.raises(StageFailed, match="5000 unknowns; expected at most 4096"):
        baselines.LinearProbe.fit(np.eye(4, 499), np.arange(4), 10)


def test_representer_values_add_up_to_the_logit() -> None:
    rows, label = labelled()
    probe = baselines.LinearProbe.fit(rows, label, 3)
    new = RNG.normal(size=(7, 4))
    values = baselines.representer_values(probe, rows, label, new)
    logits = probe.design(new) @ probe.W
    predicted = logits.argmax(axis=1)
    # sum_i alpha_i phi_i is W at the optimum, where the gradient is zero.
    assert values.sum(axis=1) == pytest.approx(logits[np.arange(7), predicted], abs=1e-3)


def test_influence_functions_foretell_retraining() -> None:
    rows, label = labelled(n=60)
    probe = baselines.LinearProbe.fit(rows, label, 3, damping=0.05)
    new = RNG.normal(size=(5, 4))
    found = baselines.influence_functions(probe, rows, label, new)
    predicted = probe.probability(new).argmax(axis=1)

    def loss_with(weight: np.ndarray) -> np.ndarray:
        """Loss of the predicted class after retraining with these weights, by Newton's method."""
        X, Y = probe.design(rows), np.eye(3)[label]
        W = probe.W.copy()
        for _ in range(8):
            P = np.exp(X @ W - np.log(np.exp(X @ W).sum(axis=1, keepdims=True)))
            G = X.T @ ((P - Y) * weight[:, None]) / 60 + 0.05 * W
            H = 0.05 * np.eye(15).reshape(5, 3, 5, 3)
            for a in range(3):
                for b in range(3):
                    w = weight * P[:, a] * ((a == b) - P[:, b]) / 60
                    H[:, a, :, b] += (X * w[:, None]).T @ X
            W = W - np.linalg.solve(H.reshape(15, 15), G.ravel()).reshape(5, 3)
        P = np.exp(probe.design(new) @ W)
        return -np.log(P[np.arange(5), predicted] / P.sum(axis=1))

    tiny, before = 1e-4, loss_with(np.ones(60))
    lighter = [loss_with(1.0 - tiny * (np.arange(60) == i)) for i in range(60)]
    slope = (np.stack(lighter, axis=1) - before[:, None]) / tiny
    assert found / 60 == pytest.approx(slope, rel=1e-2, abs=1e-4 * np.abs(slope).max())
