from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity import metrics
from krepes_ooc.stages.fidelity import sample_estimates as estimates

RNG = np.random.default_rng(77)
N = 24
Weighted = Callable[[np.ndarray], float]


def weighted_tau(x: np.ndarray, y: np.ndarray) -> Weighted:
    def tau(w: np.ndarray) -> float:
        s = t = u = 0.0
        for i in range(len(x)):
            for j in range(len(x)):
                a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
                s += w[i] * w[j] * a * b
                t += w[i] * w[j] * a * a
                u += w[i] * w[j] * b * b
        return float(s / np.sqrt(t * u))

    return tau


def weighted_cka(X: np.ndarray, Y: np.ndarray) -> Weighted:
    def cka(w: np.ndarray) -> float:
        A, B = X - w @ X, Y - w @ Y
        D = np.diag(w)

        def inner(P: np.ndarray, Q: np.ndarray) -> float:
            return float(np.sum((P.T @ D @ Q) ** 2))

        return inner(A, B) / np.sqrt(inner(A, A) * inner(B, B))

    return cka


def weighted_r_squared(target: np.ndarray, predicted: np.ndarray) -> Weighted:
    def score(w: np.ndarray) -> float:
        spread = w @ np.sum((target - w @ target) ** 2, axis=1)
        return float(1 - w @ np.sum((target - predicted) ** 2, axis=1) / spread)

    return score


def weighted_ratio(a: np.ndarray, b: np.ndarray) -> Weighted:
    return lambda w: float(w @ a / (w @ b))


X, Y = RNG.normal(size=(N, 5)), RNG.normal(size=(N, 3))
Y[:, 0] += X[:, 1]
TIES = np.round(X[:, 0])
CASES = {
    "tau": (estimates.tau_estimate(X[:, 0], Y[:, 0]), weighted_tau(X[:, 0], Y[:, 0])),
    "tau with ties": (estimates.tau_estimate(TIES, Y[:, 0]), weighted_tau(TIES, Y[:, 0])),
    "cka": (estimates.cka_estimate(X, Y), weighted_cka(X, Y)),
    "r squared": (estimates.r_squared_estimate(Y, X[:, :3]), weighted_r_squared(Y, X[:, :3])),
    "ratio": (
        estimates.ratio_estimate(X[:, 0] ** 2, Y[:, 1] ** 2),
        weighted_ratio(X[:, 0] ** 2, Y[:, 1] ** 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_influence_are_those_of_a_weighted_figure(name: str) -> None:
    """The derivative to each weight, the weights keeping their sum, by central differences."""
    found, figure = CASES[name]
    equal = np.full(N, 1 / N)
    assert found.value == pytest.approx(figure(equal), abs=1e-12)
    step = 1e-5
    for i in range(N):
        direction = np.eye(N)[i] - equal
        slope = (figure(equal + step * direction) - figure(equal - step * direction)) / (2 * step)
        assert found.influence[i] == pytest.approx(slope, abs=1e-6 * (1 + abs(slope))), i
    assert abs(found.influence.sum()) < 1e-9 * N


def test_values_are_those_of_the_metrics() -> None:
    assert CASES["tau with ties"][0].value == pytest.approx(metrics.kendall_tau(TIES, Y[:, 0]))
    assert CASES["cka"][0].value == pytest.approx(metrics.linear_cka(X, Y))
    assert CASES["r squared"][0].value == pytest.approx(metrics.r_squared(Y, X[:, :3]))


def test_the_error_is_that_of_a_bootstrap() -> None:
    x = RNG.normal(size=300)
    y = x + RNG.normal(size=300)
    draws = RNG.integers(300, size=(400, 300))
    taus = [metrics.kendall_tau(x[d], y[d]) for d in draws]
    assert estimates.tau_estimate(x, y).error == pytest.approx(np.std(taus), rel=0.2)


def test_a_paired_interval_is_narrower_where_figures_share_their_noise() -> None:
    truth = RNG.normal(size=400)
    good = truth + RNG.normal(size=400)
    better = good + 0.4 * (truth - good)
    first, second = (estimates.tau_estimate(one, truth) for one in (better, good))
    difference = first.minus(second)
    assert difference.error < 0.5 * np.hypot(first.error, second.error)
    assert difference.interval[0] > 0
    # The intervals of the two alone overlap: unpaired they tell nothing
    found = estimates.paired(first, {"second": second, "none": None})
    assert found == {"second": (difference.value, difference.interval)}


def test_equal_figures_have_no_difference() -> None:
    """The control fails: what does nothing is not told from the kernel."""
    x, y = RNG.normal(size=100), RNG.normal(size=100)
    same = estimates.tau_estimate(x, y)
    low, high = same.minus(estimates.tau_estimate(np.exp(x), y)).interval
    assert low == high == 0
    noisy = x + 1e-3 * RNG.normal(size=100)
    low, high = same.minus(estimates.tau_estimate(noisy, y)).interval
    assert low <= 0 <= high


def test_the_interval_covers_in_about_19_of_20_cases() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        hit = rng.random((2, 200)) < np.array([[0.8], [0.7]])
        both = [estimates.mean_estimate(row.astype(float)) for row in hit]
        low, high = both[0].minus(both[1]).interval
        covered += low <= 0.1 <= high
    assert 270 <= covered <= 298


def test_one_sample_says_nothing_of_its_error() -> None:
    found = estimates.mean_estimate(np.array([3.0]))
    assert found.value == 3.0
    assert found.minus(found).interval == (-np.inf, np.inf)


def test_what_is_constant_is_refused_in_words() -> None:
    flat = np.ones((9, 2))
    with pytest.raises(StageFailed, match="Kendall's tau is not defined; expected two rankings"):
        estimates.tau_estimate(flat[:, 0], np.arange(9.0))
    with pytest.raises(StageFailed, match="CKA is not defined; expected two embeddings"):
        estimates.cka_estimate(flat, RNG.normal(size=(9, 2)))
    with pytest.raises(StageFailed, match="R squared is not defined; expected a target"):
        estimates.r_squared_estimate(flat, flat)
    with pytest.raises(StageFailed, match="a ratio is not defined; expected a denominator"):
        estimates.ratio_estimate(np.ones(3), np.zeros(3))
