"""Several damped steps: they go down, they end, and BYOL takes only one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import UsageError
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.levenberg_marquardt import levenberg_marquardt
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins
from krepes_ooc.stages.newton.objectives.spectral_contrastive import SpectralContrastive
from krepes_ooc.stages.newton.objectives.vicreg import VICReg
from krepes_ooc.stages.newton.solvers import KrylovSolver
from tests import cases, dense
from tests.stages.newton.objectives.test_objectives import sample_objective


def moments_of(case: cases.Case) -> Moments:
    return Moments(*dense.moments(case.kernels), case.kernels.shape[1])


def prepare(objective: Any) -> Any:
    def at(A: np.ndarray) -> tuple[Any, KrylovSolver]:
        here = objective.linearise(A)
        return here, KrylovSolver(here)

    return at


@pytest.mark.parametrize("kind", [BarlowTwins, VICReg, SpectralContrastive])
def test_every_accepted_step_lowers_the_loss(kind: type) -> None:
    case = cases.case("two-views")
    objective = kind(moments_of(case))
    found = levenberg_marquardt(objective, case.start, prepare(objective), steps=6)
    assert len(found.loss) == len(found.rho) + 1 == len(found.damping_relative) + 1
    assert len(found.rho) >= 2
    assert (np.diff(found.loss) < 0).all()
    assert found.loss[0] == objective.value(case.start)
    assert found.loss[-1] == objective.value(found.coefficients)


def test_it_reaches_a_stationary_point_and_says_so() -> None:
    case = cases.case("two-views")
    objective = SpectralContrastive(moments_of(case))
    found = levenberg_marquardt(objective, case.start, prepare(objective), steps=200)
    assert "no further decrease" in found.reason
    gradient = objective.linearise(found.coefficients).gradient
    assert np.linalg.norm(gradient) < 1e-3 * np.linalg.norm(
        objective.linearise(case.start).gradient
    )


def test_a_model_that_lies_ends_the_descent() -> None:
    case = cases.case("two-views")

    class Uphill(VICReg):
        def value(self, A: np.ndarray) -> float:
            return 1e9

    objective = Uphill(moments_of(case))
    found = levenberg_marquardt(objective, case.start, prepare(objective), steps=2)
    assert found.trials == 16
    assert "no damping tried" in found.reason
    np.testing.assert_array_equal(found.coefficients, case.start)


def test_byol_is_not_iterated() -> None:
    case = cases.case("two-views")
    objective = sample_objective("byol", case)
    with pytest.raises(UsageError, match=r"byol moves the embedding .* collapses if repeated"):
        levenberg_marquardt(objective, case.start, prepare(objective))


def test_a_descent_goes_on_where_it_was_left() -> None:
    case = cases.case("two-views")
    objective = VICReg(moments_of(case))
    states: list[Any] = []
    whole = levenberg_marquardt(
        objective, case.start, prepare(objective), steps=4, checkpoint=states.append
    )
    assert len(states) == whole.trials
    for state in states:
        resumed = levenberg_marquardt(
            objective, case.start, prepare(objective), steps=4, state=state
        )
        assert np.array_equal(resumed.coefficients, whole.coefficients)
        assert (resumed.trials, resumed.products) == (whole.trials, whole.products)
        assert resumed.reason == whole.reason


@pytest.mark.parametrize("left", [0.0, -5e-18])
def test_curvature_that_vanishes_on_the_way_ends_the_descent(left: float) -> None:
    """One landmark under Barlow Twins: once the views agree, a trace of rounding size is left."""
    case = cases.case("two-views")
    objective = VICReg(moments_of(case))
    seen: list[np.ndarray] = []

    def flat_after_one_step(A: np.ndarray) -> tuple[Any, KrylovSolver]:
        here = objective.linearise(A)
        seen.append(A)
        return (here if len(seen) == 1 else Flat(here.value, left)), KrylovSolver(here)

    found = levenberg_marquardt(objective, case.start, flat_after_one_step, steps=5)
    assert found.reason == "the loss has no curvature left"
    assert len(found.rho) == 1
    np.testing.assert_array_equal(found.coefficients, seen[-1])


class Flat:
    """A linearisation whose curvature is gone."""

    def __init__(self, value: float, mean_diagonal: float) -> None:
        self.value, self.mean_diagonal = value, mean_diagonal
