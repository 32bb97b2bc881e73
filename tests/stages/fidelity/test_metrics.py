from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity import metrics
from krepes_ooc.stages.spectrum import nystrom

RNG = np.random.default_rng(8)


def test_spectral_entropy_of_known_spectra() -> None:
    assert nystrom.spectral_entropy(np.eye(5)[:, :4]) == pytest.approx(1.0)
    one = np.outer(RNG.normal(size=6), RNG.normal(size=3))
    assert nystrom.spectral_entropy(one) == pytest.approx(0.0, abs=1e-10)
    p = np.array([0.5, 0.25, 0.25])
    A = np.linalg.qr(RNG.normal(size=(7, 3)))[0] * np.sqrt(p)
    assert nystrom.spectral_entropy(A) == pytest.approx(-np.sum(p * np.log(p)) / np.log(3))
    assert nystrom.spectral_entropy(1e-30 * A) == pytest.approx(nystrom.spectral_entropy(A))


def test_spectral_entropy_of_degenerate_matrices_is_zero_by_convention() -> None:
    assert nystrom.spectral_entropy(np.zeros((4, 3))) == 0.0
    assert nystrom.spectral_entropy(np.ones((4, 1))) == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20))
def test_kendall_tau_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    signs_x = np.sign(x[:, None] - x[None, :])[np.triu_indices(len(x), 1)]
    signs_y = np.sign(y[:, None] - y[None, :])[np.triu_indices(len(y), 1)]
    size = np.sqrt(np.sum(signs_x**2) * np.sum(signs_y**2))
    if size == 0:
        with pytest.raises(StageFailed, match="Kendall's tau is not defined; expected two"):
            metrics.kendall_tau(x, y)
    else:
        assert metrics.kendall_tau(x, y) == pytest.approx(signs_x @ signs_y / size)


@pytest.mark.parametrize("n", [2, 3, 17, 64, 1000, 4097])
@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_kendall_tau_is_that_of_scipy_with_and_without_ties(n: int, levels: int) -> None:
    from scipy.stats import kendalltau

    x = RNG.integers(0, levels, n) / 7
    x[-1] = x[0] + 1.0
    y = RNG.permutation(x) - 0.3 * x
    if len(np.unique(y)) > 1:
        expected = kendalltau(x, y).statistic
        assert metrics.kendall_tau(x, y) == pytest.approx(expected, abs=1e-12)
    assert metrics.kendall_tau(x, 2.0 * x) == 1.0
    assert metrics.kendall_tau(x, -x) == -1.0


def test_kendall_tau_of_values_that_are_not_finite_is_not_defined() -> None:
    with pytest.raises(StageFailed, match="Kendall's tau is not defined"):
        metrics.kendall_tau(np.array([0.0, np.nan, 1.0]), np.arange(3.0))


def test_kendall_tau_needs_two_samples() -> None:
    with pytest.raises(StageFailed, match="Kendall's tau"):
        metrics.kendall_tau(np.ones(1), np.ones(1))


def test_linear_cka_ignores_rotation_scale_and_shift() -> None:
    X = RNG.normal(size=(50, 6))
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert metrics.linear_cka(X, 3 * X @ rotation + 5) == pytest.approx(1.0)
    Y = RNG.normal(size=(50, 4))
    centred = np.eye(50) - 1 / 50
    K, L = centred @ X @ X.T @ centred, centred @ Y @ Y.T @ centred
    expected = np.sum(K * L) / np.linalg.norm(K) / np.linalg.norm(L)
    assert metrics.linear_cka(X, Y) == pytest.approx(expected)
    with pytest.raises(StageFailed, match="CKA is not defined; expected two embeddings"):
        metrics.linear_cka(X, np.ones((50, 2)))


def test_r_squared() -> None:
    target = RNG.normal(size=(20, 3))
    assert metrics.r_squared(target, target) == 1.0
    assert metrics.r_squared(target, np.tile(target.mean(axis=0), (20, 1))) == pytest.approx(0)
    with pytest.raises(StageFailed, match="R squared is not defined; expected a target"):
        metrics.r_squared(np.ones((5, 2)), np.ones((5, 2)))


def split(noise: float, m: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    K, A = RNG.normal(size=(160, m)) @ RNG.normal(size=(m, m)), RNG.normal(size=(m, 3))
    target = K @ A + 4.0 + noise * RNG.normal(size=(160, 3))
    return K[:100], target[:100], K[100:], target[100:]


def test_ridge_ceiling_finds_an_exact_map() -> None:
    K, target, K_held, target_held = split(0.0)
    fit = metrics.ridge_ceiling(K, target, K_held, target_held)
    assert fit.r_squared > 1 - 1e-8
    np.testing.assert_allclose(fit.predict(K_held), target_held, rtol=1e-3, atol=1e-3)


def test_ridge_damping_is_the_best_by_leaving_one_out() -> None:
    K, target, K_held, target_held = split(30.0)
    fit = metrics.ridge_ceiling(K, target, K_held, target_held)
    errors = []
    for damping in metrics.RIDGE_GRID:
        total = 0.0
        for row in range(100):
            keep = np.arange(100) != row
            k, t = K[keep].mean(axis=0), target[keep].mean(axis=0)
            ridge = damping * np.trace((K - K.mean(axis=0)).T @ (K - K.mean(axis=0))) / 12
            X = K[keep] - k
            A = np.linalg.solve(X.T @ X + ridge * np.eye(12), X.T @ (target[keep] - t))
            total += np.sum((target[row] - t - (K[row] - k) @ A) ** 2)
        errors.append(total)
    assert fit.damping == metrics.RIDGE_GRID[int(np.argmin(errors))]
    assert fit.r_squared < 1


def test_ridge_ceiling_never_looks_at_held_out_rows_to_fit() -> None:
    K, target, K_held, target_held = split(5.0)
    fit = metrics.ridge_ceiling(K, target, K_held, target_held)
    other = metrics.ridge_ceiling(K, target, K_held[::-1], RNG.normal(size=target_held.shape))
    np.testing.assert_array_equal(fit.coefficients, other.coefficients)
    assert fit.damping == other.damping


def test_ridge_ceiling_with_more_landmarks_than_rows_and_duplicates() -> None:
    K = RNG.normal(size=(20, 30))
    K[:, 7] = K[:, 3]
    fit = metrics.ridge_ceiling(K[:15], K[:15, :2], K[15:], K[15:, :2])
    assert np.isfinite(fit.coefficients).all()
    with pytest.raises(StageFailed, match="the ridge ceiling is not defined"):
        metrics.ridge_ceiling(np.ones((9, 4)), K[:9, :2], K[9:, :4], K[9:, :2])


def test_linear_probe_separates_what_is_separable() -> None:
    label = np.arange(120) % 3
    features = np.eye(3)[label] * 4 + RNG.normal(size=(120, 3))
    probe = metrics.linear_probe(features[:80], label[:80], features[80:], label[80:])
    assert probe.accuracy > 0.9
    np.testing.assert_allclose(probe.probability.sum(axis=1), 1.0)
    np.testing.assert_array_equal(
        probe.true_probability, probe.probability[np.arange(40), label[80:]]
    )
    scaled = metrics.linear_probe(
        features[:80] * [1, 100, 1e-3], label[:80], features[80:] * [1, 100, 1e-3], label[80:]
    )
    np.testing.assert_allclose(scaled.probability, probe.probability, atol=1e-3)


@pytest.mark.filterwarnings("error")
def test_linear_probe_says_whether_it_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    label, features = np.arange(60) % 3, RNG.normal(size=(60, 5))
    given = features, label, features, label
    assert metrics.linear_probe(*given).converged
    monkeypatch.setattr(metrics, "PROBE_ITERATIONS", 2)
    assert not metrics.linear_probe(*given).converged


def test_linear_probe_with_gaps_in_the_classes() -> None:
    features, label = RNG.normal(size=(40, 2)), np.repeat([1, 4], 20)
    held = np.array([4, 5, 1])  # class 5 was never fitted
    probe = metrics.linear_probe(features, label, features[:3], held)
    assert probe.probability.shape == (3, 6)
    assert probe.true_probability[1] == 0.0
    with pytest.raises(StageFailed, match="the linear probe is not defined; expected at least two"):
        metrics.linear_probe(features, np.zeros(40, dtype=int), features, label)


def test_precision_and_majority_leave_unknown_labels_out() -> None:
    nearest, label = np.array([0, 1, -1, 2, 2]), np.array([0, 2, 1, 2, -1])
    assert metrics.precision_at_1(nearest, label) == pytest.approx(2 / 3)
    assert metrics.majority_share(np.array([-1, 1, 1, 0])) == pytest.approx(2 / 3)
    unknown = np.full(3, -1)
    with pytest.raises(StageFailed, match="precision at 1 is not defined"):
        metrics.precision_at_1(unknown, label[:3])
    with pytest.raises(StageFailed, match="the majority share is not defined"):
        metrics.majority_share(unknown)


def test_coverage_counts_landmarks_until_every_class_is_there() -> None:
    label = np.array([0, 0, 1, -1, 2, 1])
    assert metrics.coverage(np.array([9.0, 8, 7, 6, 5, 4]), label, 3) == 5
    assert metrics.coverage(np.array([9.0, 1, 7, 1, 8, 1]), label, 3) == 3
    assert metrics.coverage(np.ones(6), label, 2) == 3  # ties: lower index first
    with pytest.raises(StageFailed, match=r"coverage is not defined; .*none of class 3"):
        metrics.coverage(np.ones(6), label, 4)


def test_random_coverage_is_the_mean_over_orders() -> None:
    label = np.arange(10) % 2
    # E = 1 + E[draws until the other class]: sum over k >= 0 of P(k same ones in a row after one).
    expected = 1 + sum(np.prod([(4 - j) / (9 - j) for j in range(k)]) for k in range(5))
    got = metrics.random_coverage(label, 2, seed=1, shuffles=3000)
    assert got == pytest.approx(expected, abs=0.1)
    assert got == metrics.random_coverage(label, 2, seed=1, shuffles=3000)
    assert metrics.random_coverage(label, 2, seed=2) != metrics.random_coverage(label, 2, seed=1)
