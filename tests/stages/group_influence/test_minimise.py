"""The damped minimiser against SciPy's, on moments of planted kernels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from krepes_ooc.stages.group_influence.minimise import (
    CurvatureInverse,
    damping_of,
    minimise,
)
from krepes_ooc.stages.newton.objectives import registry
from tests.stages.group_audits import dense

# Relative damping; VICReg's keeps deviations below 1, where its hinge has a kink.
NAMES = {"barlow-twins": 0.3, "vicreg": 3.0, "spectral-contrastive": 0.3}
M, H = 10, 3


def problem(name: str, relative: float | None = None, scale: float = 0.1):
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(200, M)) @ draw.normal(size=(M, M)) / 3
    K = np.stack([shared + 0.3 * draw.normal(size=shared.shape) for _ in range(2)])
    K *= scale
    moments = dense(K).full()
    start = draw.normal(size=(M, H)) / 3
    settings = registry.settings_type(name)()
    objective = registry.create(name, settings, moments=moments, start=start, offset=np.zeros(H))
    at_start = objective.linearise(start)
    damping = damping_of(NAMES[name] if relative is None else relative, at_start)
    return objective, start, damping, CurvatureInverse.build(at_start, moments, damping)


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_is_that_of_scipy(name: str):
    objective, start, damping, inverse = problem(name)
    found = minimise(objective, start, damping, inverse, tolerance=1e-9, max_steps=3000)
    assert found.converged, found

    def value_and_slope(flat):
        A = flat.reshape(start.shape)
        here = objective.linearise(A)
        moved = A - start
        value = here.value + damping / 2 * (moved**2).sum()
        return value, (here.gradient + damping * moved).ravel()

    polished = minimize(
        value_and_slope, found.coefficients.ravel(), jac=True, method="BFGS", tol=1e-10
    )
    np.testing.assert_allclose(polished.x, found.coefficients.ravel(), atol=1e-6)
    first, last = value_and_slope(start.ravel()), value_and_slope(found.coefficients.ravel())
    assert last[0] < first[0]
    ratio = np.linalg.norm(last[1]) / np.linalg.norm(first[1])
    assert found.gradient_norm == pytest.approx(ratio, rel=1e-6)
    assert found.gradient_norm <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_every_step_lowers_the_damped_objective(name: str):
    objective, start, damping, inverse = problem(name, 0.01)
    before = np.inf
    for steps in (1, 2, 5, 20):
        found = minimise(objective, start, damping, inverse, max_steps=steps)
        assert found.steps <= steps
        moved = found.coefficients - start
        value = found.loss + damping / 2 * (moved**2).sum()
        assert value < before
        before = value
    assert not minimise(objective, start, damping, inverse, max_steps=1).converged


def test_a_minimum_at_the_kink_of_the_hinge_is_told():
    objective, start, damping, inverse = problem("vicreg", 0.3, scale=1.0)
    found = minimise(objective, start, damping, inverse, max_steps=3000)
    assert not found.converged
    assert found.reason == "no step lowers the objective beyond rounding"


def test_a_huge_damping_leaves_the_start():
    objective, start, _, _ = problem("vicreg")
    found = minimise(objective, start, 1e12, lambda R: R / 1e12)
    np.testing.assert_allclose(found.coefficients, start, atol=1e-8)


def test_a_start_without_slope_is_the_minimum():
    class Flat:
        value, gradient = 1.0, np.zeros((M, H))

        def linearise(self, A):
            return self

    found = minimise(Flat(), np.ones((M, H)), 1.0, lambda R: R)
    assert (found.steps, found.converged, found.gradient_norm) == (0, True, 0.0)


def test_no_damping_is_refused_and_a_stop_comes_through():
    objective, start, damping, inverse = problem("vicreg")
    with pytest.raises(ValueError, match="positive"):
        minimise(objective, start, 0.0, inverse)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimise(objective, start, damping, inverse, check=stop)


def test_a_loss_that_is_infinite_ahead_is_passed_over():
    class Walled:
        def __init__(self, A):
            self.value = float(np.sum((A - 2) ** 2)) if A.max() < 1.5 else np.inf
            self.gradient = 2 * (A - 2)

        @classmethod
        def linearise(cls, A):
            return cls(A)

    found = minimise(Walled, np.zeros((2, 1)), 2.0, lambda R: R, max_steps=50)
    np.testing.assert_allclose(found.coefficients, 1.0, atol=1e-5)
