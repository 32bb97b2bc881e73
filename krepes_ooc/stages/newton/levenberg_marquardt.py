"""Levenberg-Marquardt steps for objectives that may be iterated.

One step explains which landmarks change the embedding; several show how low the loss gets from the
principal components. All arrays of this module are on the host: a step, a gradient and a few
numbers of each trial.
Source: Levenberg (1944), Marquardt (1963); acceptance and damping update as a trust region by the
gain ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from krepes_ooc.core.array_columns import Array, Number
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.newton.damping import FLAT, predicted_decrease
from krepes_ooc.stages.newton.objectives.interface import Gradient
from krepes_ooc.stages.newton.solvers import Solver

# Gain ratios rho: a step is accepted above the first; damping falls above the second and grows
# below the third.
ACCEPT = 1e-3
GOOD = 0.75
POOR = 0.25
TRIALS_PER_STEP = 8


class Loss(Protocol):
    """The part of an objective that the iteration uses."""

    @property
    def name(self) -> str:
        """Name of the objective."""

    @property
    def can_iterate(self) -> bool:
        """Whether more than one step makes sense."""

    def value(self, A: Array) -> Number:
        """The loss at A [landmark, component]."""


@dataclass(frozen=True)
class LMResult:
    """Iterate and history of the Levenberg-Marquardt steps.

    Args:
        coefficients: A after the last accepted step [landmark, component].
        loss: before the first and after each accepted step [step + 1].
        damping_relative: of each accepted step [step].
        rho: actual / predicted decrease of each accepted step [step].
        trials: steps that were computed, accepted or not.
        products: products with the curvature over all trials.
        next_damping: relative damping of the next trial.
        reason: why the iteration ended; empty while it runs.
    """

    coefficients: Array
    loss: Array
    damping_relative: Array
    rho: Array
    trials: int
    products: int
    next_damping: float
    reason: str = ""


def levenberg_marquardt(
    objective: Loss,
    start: Array,
    prepare: Callable[[Array], tuple[Gradient, Solver]],
    *,
    steps: int = 5,
    damping_relative: float = 1.0,
    tolerance: float = 1e-9,
    state: LMResult | None = None,
    checkpoint: Callable[[LMResult], None] | None = None,
) -> LMResult:
    """Take up to ``steps`` damped steps that each lower the loss.

    A step is accepted if rho, actual over predicted decrease, exceeds 1e-3; the damping is divided
    by 3 for rho > 3/4 and multiplied by 4 for rho < 1/4 or a rejected step.

    Args:
        objective: the loss.
        start: A0 [landmark, component].
        prepare: the linearisation at coefficients, and a solver for it; both return host arrays.
        steps: accepted steps at most.
        damping_relative: first damping in units of the curvature's mean diagonal.
        tolerance: predicted decrease, relative to the loss, that ends the iteration.
        state: last state that an earlier call passed to ``checkpoint``, to resume from.
        checkpoint: called after every trial.

    Raises:
        UsageError: the objective must not be iterated.
    """
    if not objective.can_iterate:
        raise UsageError(
            f"{objective.name} moves the embedding towards its own start and collapses if repeated",
            where="stages.newton.lm_steps",
            expected="0",
        )
    # Linearise at the current coefficients: value, gradient G, curvature H.
    linearisation, solver = prepare(start if state is None else state.coefficients)
    if state is None:
        none = np.empty(0)
        first_loss = np.array([linearisation.value])
        state = LMResult(start, first_loss, none, none, 0, 0, damping_relative)
    while not state.reason:
        accepted = len(state.rho)
        state = _trial(objective, linearisation, solver, state, tolerance)
        state = replace(state, reason=state.reason or _end_reason(state, steps))
        if checkpoint is not None:
            checkpoint(state)
        # A rejected step changes the damping only: the linearisation stays valid.
        if len(state.rho) > accepted and not state.reason:
            linearisation, solver = prepare(state.coefficients)
    return state


def _trial(
    objective: Loss, linearisation: Gradient, solver: Solver, state: LMResult, tolerance: float
) -> LMResult:
    """One step from the current coefficients, accepted or not."""
    damping = state.next_damping
    unit = linearisation.mean_diagonal
    if not unit * np.sum(state.coefficients**2) > FLAT * abs(linearisation.value):
        return replace(state, reason="the loss has no curvature left")
    # dA = -(H + damping unit I)^(-1) G.
    solution = solver.solve(damping * unit)
    trials = state.trials + 1
    products = state.products + int(solution.iterations)
    tried = replace(state, trials=trials, products=products)
    predicted = float(predicted_decrease(linearisation, solution))
    if not predicted > tolerance * abs(linearisation.value):
        return replace(tried, reason="the model promises no further decrease")
    # rho = (L(A) - L(A + dA)) / predicted; a loss that is not finite rejects the step.
    A = state.coefficients + solution.step
    loss = objective.value(A)
    rho = (linearisation.value - loss) / predicted if np.isfinite(loss) else -np.inf
    # Trust the model more where it predicted well, less where it did not.
    factor = 1 / 3 if rho > GOOD else 4 if rho < POOR else 1
    updated = replace(tried, next_damping=damping * factor)
    if not rho > ACCEPT:
        return updated
    return replace(
        updated,
        coefficients=A,
        loss=np.append(state.loss, loss),
        damping_relative=np.append(state.damping_relative, damping),
        rho=np.append(state.rho, rho),
    )


def _end_reason(state: LMResult, steps: int) -> str:
    """The reason to end the iteration now; empty to go on."""
    if len(state.rho) >= steps:
        return "all steps taken"
    if state.trials >= steps * TRIALS_PER_STEP:
        return "no damping tried lowers the loss any more"
    return ""
