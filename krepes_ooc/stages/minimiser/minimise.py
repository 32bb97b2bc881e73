"""The damped minimiser: coefficients at the minimum of the loss near the start, not one step on.

    F(A) = L(A) + (damping / 2) |A - A0|^2,        minimised from A0

for objectives that know their moments, so that no evaluation reads the kernel. The curvature that
the Newton step uses leaves out part of the second derivative, and repeated damped steps with it
stall at a hundredth of the first gradient; so the minimiser is L-BFGS (Nocedal 1980; Liu and
Nocedal 1989) in coordinates in which the Kronecker model of that curvature is the identity,

    A = A0 + U_s [ (s q^T + damping)^(-1/2) o X ] U_q^T.

Where the rounding of F ends its line search, a Jacobian-free Newton-Krylov iteration on the
gradient alone goes on (Knoll and Keyes 2004). VICReg's hinge has a kink at a standard deviation of
1; a minimum that lies on it has no small gradient, and the result says that it did not converge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import UsageError
from krepes_ooc.stages.newton.objectives.interface import Gradient
from krepes_ooc.stages.newton.preconditioners import Kronecker

Float = npt.NDArray[np.float64]

TOLERANCE = 1e-4
MOST_EVALUATIONS = 2000
HISTORY = 30
NEAR, NEWTON_STEPS = 1e-2, 20


class MinimisedLoss(Protocol):
    """An objective as the minimiser sees it; arrays of the host."""

    @property
    def name(self) -> str:
        """Of the loss."""

    @property
    def can_iterate(self) -> bool:
        """Whether more than one step makes sense."""

    def linearise(self, A: Float) -> Gradient:
        """Value and gradient at A [landmark, component]."""


@dataclass(frozen=True)
class MinimiserResult:
    """End of a minimisation.

    Args:
        coefficients: A [landmark, component], of the least gradient if it did not converge.
        loss: L(A).
        damped_loss: F(A).
        gradient: |grad F(A)| over |grad F(A0)|.
        evaluations: of value and gradient.
        converged: whether the gradient is at most the tolerance.
    """

    coefficients: Float
    loss: float
    damped_loss: float
    gradient: float
    evaluations: int
    converged: bool


def minimise(
    objective: MinimisedLoss,
    start: Float,
    damping: float,
    *,
    preconditioner: Kronecker | None = None,
    tolerance: float = TOLERANCE,
    max_evaluations: int = MOST_EVALUATIONS,
    check: Callable[[], None] | None = None,
) -> MinimiserResult:
    """Minimise L(A) + (damping / 2) |A - A0|^2 from A0.

    Not to reach the tolerance is a result, not an error: see ``MinimiserResult.converged``.

    Args:
        objective: the loss.
        start: A0 [landmark, component].
        damping: absolute, above 0.
        preconditioner: Kronecker model of the curvature at the start; None: plain coordinates.
        tolerance: Frobenius norm of the gradient of F, relative to that at A0.
        max_evaluations: evaluations of value and gradient at most, the line search's included.
        check: called before every evaluation; may raise to stop.

    Raises:
        UsageError: the objective must not be iterated, or the damping is not above 0.
    """
    from scipy.optimize import NoConvergence, minimize, newton_krylov  # on first use: 0.2 s

    _check(objective, damping)
    space = _Coordinates.of(start, damping, preconditioner)
    path = _Path(objective, start, damping, space, tolerance, max_evaluations, check)
    with contextlib.suppress(_Reached):
        minimize(
            path.evaluate,
            np.zeros(start.size),
            jac=True,
            method="L-BFGS-B",
            # The path ends at the gradient in A; L-BFGS itself only where F stands still.
            options={
                "maxcor": HISTORY,
                "maxiter": max_evaluations,
                "maxfun": max_evaluations,
                "ftol": 0.0,
                "gtol": 0.0,
            },
        )
        # Near a smooth minimum the gradient is more exact than differences of F.
        if path.gradient <= NEAR:
            with contextlib.suppress(NoConvergence, ValueError):
                newton_krylov(
                    lambda x: path.evaluate(x)[1],
                    path.point,
                    maxiter=NEWTON_STEPS,
                    f_tol=np.finfo(float).tiny,
                )
    return path.result()


@dataclass(frozen=True)
class _Coordinates:
    """A - A0 = U_s [scale o X] U_q^T; without a model U_s and U_q are the identity."""

    shape: tuple[int, ...]
    left: Float | None
    right: Float | None
    scale: Float | None

    @classmethod
    def of(cls, start: Float, damping: float, model: Kronecker | None) -> _Coordinates:
        if model is None:
            return cls(start.shape, None, None, None)
        (s, U_s), (q, U_q) = model.left, model.right
        curvature = np.outer(np.maximum(s, 0.0), np.maximum(q, 0.0))
        return cls(start.shape, U_s, U_q, 1.0 / np.sqrt(curvature + damping))

    def change(self, x: Float) -> Float:
        """A - A0 [landmark, component] of flat coordinates."""
        X = x.reshape(self.shape)
        if self.left is None or self.right is None or self.scale is None:
            return X.copy()
        return np.asarray(self.left @ (self.scale * X) @ self.right.T)

    def pull_back(self, G: Float) -> Float:
        """Gradient in flat coordinates of a gradient in A."""
        if self.left is None or self.right is None or self.scale is None:
            return G.reshape(-1).copy()
        return np.asarray(self.scale * (self.left.T @ G @ self.right)).reshape(-1)


class _Reached(Exception):
    """The gradient is small enough, or the evaluations are used up."""


class _Path:
    """Evaluations of F, the best point so far, and the end of the path."""

    def __init__(
        self,
        objective: MinimisedLoss,
        start: Float,
        damping: float,
        space: _Coordinates,
        tolerance: float,
        most: int,
        check: Callable[[], None] | None,
    ) -> None:
        self._objective, self._start, self._damping = objective, start, damping
        self._space, self._tolerance, self._most, self._check = space, tolerance, most, check
        self._first_norm = 0.0
        self._evaluations = 0
        self._best: tuple[float, Float, float, float] | None = None
        self.point: Float = np.zeros(start.size)

    @property
    def gradient(self) -> float:
        """Least relative gradient so far."""
        return np.inf if self._best is None else self._best[0]

    def evaluate(self, x: Float) -> tuple[float, Float]:
        """F and its gradient at flat coordinates.

        Raises:
            _Reached: the path ends here.
        """
        if self._check is not None:
            self._check()
        change = self._space.change(x)
        at = self._objective.linearise(self._start + change)
        loss = float(at.value)
        damped = loss + self._damping / 2.0 * float(np.sum(change * change))
        G = at.gradient + self._damping * change
        self._evaluations += 1
        self._record(x, change, loss, damped, float(np.linalg.norm(G)))
        return damped, self._space.pull_back(G)

    def result(self) -> MinimiserResult:
        """The point of least gradient."""
        assert self._best is not None
        gradient, change, loss, damped = self._best
        return MinimiserResult(
            self._start + change,
            loss,
            damped,
            gradient,
            self._evaluations,
            gradient <= self._tolerance,
        )

    def _record(self, x: Float, change: Float, loss: float, damped: float, norm: float) -> None:
        if self._evaluations == 1:
            self._first_norm = norm
        gradient = norm / self._first_norm if self._first_norm > 0 else 0.0
        if np.isfinite(damped) and (self._best is None or gradient < self._best[0]):
            self._best = gradient, change, loss, damped
            self.point = x.copy()
        if gradient <= self._tolerance or self._evaluations >= self._most:
            raise _Reached


def _check(objective: MinimisedLoss, damping: float) -> None:
    if not objective.can_iterate:
        raise UsageError(
            f"{objective.name} moves the embedding towards its own start and collapses if repeated",
            where="stages.newton",
            expected="an objective that may be iterated",
        )
    if not damping > 0:
        raise UsageError(
            f"damping {damping:g}", where="stages.newton.damping", expected="a number above 0"
        )
