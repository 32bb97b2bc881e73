"""More than one Newton step: Levenberg-Marquardt for objectives that may be iterated.

One step explains which landmarks move the embedding; several show how far the loss goes from the
principal components (Levenberg 1944, Marquardt 1963).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from krepes_ooc.algebra.curvature import Array, Linearisation, Objective
from krepes_ooc.algebra.damping import predicted_decrease
from krepes_ooc.algebra.solve import Solver
from krepes_ooc.errors import UsageError

ACCEPT, GOOD, POOR = 1e-3, 0.75, 0.25
TRIALS_PER_STEP = 8


@dataclass(frozen=True)
class Descent:
    """Where several damped steps led.

    Args:
        coefficients: A after the last accepted step [landmark, component].
        loss: before the first and after each accepted step [step + 1].
        damping_relative: of each accepted step [step].
        rho: actual / predicted decrease of each accepted step [step].
        trials: steps that were computed, accepted or not.
        why: what ended the descent.
    """

    coefficients: Array
    loss: Array
    damping_relative: Array
    rho: Array
    trials: int
    why: str


def levenberg_marquardt(
    objective: Objective,
    start: Array,
    make_solver: Callable[[Linearisation], Solver],
    *,
    steps: int = 5,
    damping_relative: float = 1.0,
    tolerance: float = 1e-9,
) -> Descent:
    """Take up to ``steps`` damped steps that each lower the loss.

    A step is accepted if it keeps a thousandth of the decrease that the model promises; the damping
    is divided by 3 after a good step and multiplied by 4 after a poor or rejected one.

    Args:
        objective: the loss.
        start: A0 [landmark, component].
        make_solver: the solver for a linearisation.
        steps: accepted steps at most.
        damping_relative: first damping in units of the curvature's mean diagonal.
        tolerance: promised decrease, relative to the loss, that ends the descent.

    Raises:
        UsageError: the objective must not be iterated.
    """
    if not objective.repeatable:
        raise UsageError(
            f"{objective.name} pulls the embedding towards its own start and collapses if repeated",
            where="stages.newton.steps",
            expected="1",
        )
    A, here = start, objective.linearise(start)
    solver = make_solver(here)
    losses, dampings, ratios = [here.value], list[float](), list[float]()
    trials, why = 0, "all steps taken"
    while len(ratios) < steps:
        if trials == steps * TRIALS_PER_STEP:
            why = "no damping tried lowers the loss any more"
            break
        trials += 1
        dA = solver.solve(damping_relative * here.mean_diagonal).step
        promised = float(predicted_decrease(here, dA[..., None])[0])
        if not promised > tolerance * abs(here.value):
            why = "the model promises no further decrease"
            break
        loss = objective.value(A + dA)
        rho = (here.value - loss) / promised if np.isfinite(loss) else -np.inf
        if rho > ACCEPT:
            A = A + dA
            here = objective.linearise(A)
            solver = make_solver(here)
            losses.append(here.value)
            dampings.append(damping_relative)
            ratios.append(rho)
        damping_relative *= 1 / 3 if rho > GOOD else 4 if rho < POOR else 1
    return Descent(A, np.array(losses), np.array(dampings), np.array(ratios), trials, why)
