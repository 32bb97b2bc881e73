"""More than one Newton step: Levenberg-Marquardt for objectives that may be iterated.

One step explains which landmarks move the embedding; several show how far the loss goes from the
principal components (Levenberg 1944, Marquardt 1963). The bookkeeping is the host's: a step, a
gradient and a few numbers of each trial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from krepes_ooc.core.arrays import Array, Number
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.newton.damping import FLAT, predicted_decrease
from krepes_ooc.stages.newton.objectives.interface import Gradient
from krepes_ooc.stages.newton.solvers import Solver

ACCEPT, GOOD, POOR = 1e-3, 0.75, 0.25
TRIALS_PER_STEP = 8


class Loss(Protocol):
    """What a descent asks of an objective."""

    @property
    def name(self) -> str:
        """Of the objective."""

    @property
    def can_iterate(self) -> bool:
        """Whether more than one step makes sense."""

    def value(self, A: Array) -> Number:
        """The loss at A [landmark, component]."""


@dataclass(frozen=True)
class LMResult:
    """Where several damped steps led.

    Args:
        coefficients: A after the last accepted step [landmark, component].
        loss: before the first and after each accepted step [step + 1].
        damping_relative: of each accepted step [step].
        rho: actual / predicted decrease of each accepted step [step].
        trials: steps that were computed, accepted or not.
        products: products with the curvature over all trials.
        next_damping: relative damping of the next trial.
        reason: what ended the descent; empty while it goes on.
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

    A step is accepted if it keeps a thousandth of the decrease that the model promises; the damping
    is divided by 3 after a good step and multiplied by 4 after a poor or rejected one.

    Args:
        objective: the loss.
        start: A0 [landmark, component].
        prepare: the linearisation at coefficients, and a solver for it; both give host arrays.
        steps: accepted steps at most.
        damping_relative: first damping in units of the curvature's mean diagonal.
        tolerance: promised decrease, relative to the loss, that ends the descent.
        state: what an earlier descent handed to ``checkpoint``; the descent goes on from it.
        checkpoint: called after every trial.

    Raises:
        UsageError: the objective must not be iterated.
    """
    if not objective.can_iterate:
        raise UsageError(
            f"{objective.name} pulls the embedding towards its own start and collapses if repeated",
            where="stages.newton.lm_steps",
            expected="0",
        )
    here, solver = prepare(start if state is None else state.coefficients)
    if state is None:
        none = np.empty(0)
        state = LMResult(start, np.array([here.value]), none, none, 0, 0, damping_relative)
    while not state.reason:
        before, state = state, _trial(objective, here, solver, state, tolerance)
        state = replace(state, reason=state.reason or _end(state, steps))
        if checkpoint is not None:
            checkpoint(state)
        if len(state.rho) > len(before.rho) and not state.reason:
            here, solver = prepare(state.coefficients)
    return state


def _trial(
    objective: Loss, here: Gradient, solver: Solver, state: LMResult, tolerance: float
) -> LMResult:
    """One step from the current coefficients, accepted or not."""
    damping = state.next_damping
    if not here.mean_diagonal * np.sum(state.coefficients**2) > FLAT * abs(here.value):
        return replace(state, reason="the loss has no curvature left")
    solution = solver.solve(damping * here.mean_diagonal)
    tried = replace(
        state, trials=state.trials + 1, products=state.products + int(solution.iterations)
    )
    promised = float(predicted_decrease(here, solution))
    if not promised > tolerance * abs(here.value):
        return replace(tried, reason="the model promises no further decrease")
    A = state.coefficients + solution.step
    loss = objective.value(A)
    rho = (here.value - loss) / promised if np.isfinite(loss) else -np.inf
    changed = replace(
        tried, next_damping=damping * (1 / 3 if rho > GOOD else 4 if rho < POOR else 1)
    )
    if not rho > ACCEPT:
        return changed
    return replace(
        changed,
        coefficients=A,
        loss=np.append(state.loss, loss),
        damping_relative=np.append(state.damping_relative, damping),
        rho=np.append(state.rho, rho),
    )


def _end(state: LMResult, steps: int) -> str:
    """Why the descent ends now, or nothing."""
    if len(state.rho) >= steps:
        return "all steps taken"
    if state.trials >= steps * TRIALS_PER_STEP:
        return "no damping tried lowers the loss any more"
    return ""
