"""The damped minimiser: coefficients at the minimum of the loss near the start, not one step on.

    F(A) = L(A) + (damping / 2) |A - A0|^2,        minimised from A0

for objectives that know their moments, so that no evaluation reads the kernel. The curvature that
the Newton step uses leaves out part of the second derivative, and repeated damped steps with it
stall at a hundredth of the first gradient; so the minimiser is L-BFGS (Nocedal 1980; Liu and
Nocedal 1989) in coordinates in which the Kronecker model of that curvature is the identity,

    A = A_i + U_s [ (s q^T + damping)^(-1/2) o X ] U_q^T.

The curvature at A0 says little about that at the minimum, where the loss is a tenth or less. So
the model is looked at again after 10, 25, 47, ... evaluations, and where it has changed much
L-BFGS begins again at the best point A_i so far in the coordinates of the model there. S is that of
the moments and stays; Q is decomposed anew. A loss that is invariant to rotations stays with the
first model: Q turns with the embedding, and L-BFGS would only forget what it has learned.

Where the rounding of F ends the line search, a Jacobian-free Newton-Krylov iteration on the
gradient alone goes on (Knoll and Keyes 2004). VICReg's hinge has a kink at a standard deviation of
1; a minimum that lies on it has no small gradient, and the result says that it did not converge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import UsageError
from krepes_ooc.stages.newton.objectives.interface import Linearisation
from krepes_ooc.stages.newton.preconditioners import Kronecker

Float = npt.NDArray[np.float64]
CurvatureModel = Callable[[Linearisation], Kronecker]

TOLERANCE = 1e-4
MOST_EVALUATIONS = 2000
HISTORY = 30
# The model is looked at after so many evaluations, then after ever more.
FIRST_LOOK, GROWTH = 10, 1.5
# Relative change of Q from which on the path begins again.
CHANGE = 0.1
NEAR, NEWTON_STEPS = 1e-2, 20
# Relative differences of F below this are rounding.
ROUNDING = 1e-13
# F of a point where the loss is not defined, above the least one and in its units.
TURN_BACK = 10.0


class MinimisedLoss(Protocol):
    """An objective as the minimiser sees it; arrays of the host."""

    @property
    def name(self) -> str:
        """Of the loss."""

    @property
    def can_iterate(self) -> bool:
        """Whether more than one step makes sense."""

    @property
    def rotation_invariant(self) -> bool:
        """Whether the loss is invariant to a rotation of all embeddings."""

    def linearise(self, A: Float) -> Linearisation:
        """Value, gradient and curvature at A [landmark, component]."""


@dataclass(frozen=True)
class MinimiserResult:
    """End of a minimisation.

    Args:
        coefficients: A [landmark, component], of the least F if it did not converge.
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
    model: CurvatureModel | None = None,
    point: Float | None = None,
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
        model: Kronecker model of the curvature at given coefficients; None: plain coordinates.
        point: coefficients that the iteration begins at; None: A0. F stays the same.
        tolerance: Frobenius norm of the gradient of F, relative to that at A0.
        max_evaluations: evaluations of value and gradient at most, the line search's included.
        check: called before every evaluation; may raise to stop.

    Raises:
        UsageError: the objective must not be iterated, or the damping is not above 0.
    """
    _check(objective, damping)
    path = _Path(objective, start, damping, model, point, tolerance, max_evaluations, check)
    with contextlib.suppress(_Reached):
        while path.descend():
            pass
        # Near a smooth minimum the gradient is more exact than differences of F.
        if path.best.gradient <= NEAR:
            path.polish()
    return path.result()


@dataclass(frozen=True)
class _Coordinates:
    """A - A_i = U_s [scale o X] U_q^T; without a model U_s and U_q are the identity."""

    shape: tuple[int, ...]
    left: Float | None
    right: Float | None
    scale: Float | None

    @classmethod
    def of(cls, shape: tuple[int, ...], damping: float, model: Kronecker | None) -> _Coordinates:
        if model is None:
            return cls(shape, None, None, None)
        (s, U_s), (q, U_q) = model.left, model.right
        curvature = np.outer(np.maximum(s, 0.0), np.maximum(q, 0.0))
        return cls(shape, U_s, U_q, 1.0 / np.sqrt(curvature + damping))

    def change(self, x: Float) -> Float:
        """A - A_i [landmark, component] of flat coordinates."""
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


class _CurvatureChanged(Exception):
    """The model of the curvature is no longer that of the coordinates."""


@dataclass(frozen=True)
class _Point:
    """Coefficients with L, F and its gradient, as a matrix and in size relative to the start."""

    A: Float
    at: Linearisation
    loss: float
    damped: float
    G: Float
    gradient: float

    def is_better(self, other: _Point) -> bool:
        """Whether F is less, or as small and its gradient less."""
        rounding = ROUNDING * abs(other.damped)
        if abs(self.damped - other.damped) <= rounding:
            return self.gradient < other.gradient
        return self.damped < other.damped


class _Path:
    """Evaluations of F, the best point so far, and the end of the path.

    Args:
        objective, start, damping, model, point, tolerance, most, check: of ``minimise``.
    """

    def __init__(
        self,
        objective: MinimisedLoss,
        start: Float,
        damping: float,
        model: CurvatureModel | None,
        point: Float | None,
        tolerance: float,
        most: int,
        check: Callable[[], None] | None,
    ) -> None:
        self._objective, self._start, self._damping = objective, start, damping
        self._model, self._tolerance, self._most, self._check = model, tolerance, most, check
        self._evaluations, self._interval = 0, float(FIRST_LOOK)
        self._next_look = FIRST_LOOK
        self._first_norm = 1.0
        first = self._point(start)
        self._first_norm = first.gradient or 1.0
        first = replace(first, gradient=first.gradient / self._first_norm)
        self.best = first if point is None else self._point(point)
        self._known: Kronecker | None = None if model is None else model(self.best.at)
        self._begin_at_best()

    def descend(self) -> bool:
        """L-BFGS from the best point; whether it stopped because the model has changed.

        Raises:
            _Reached: the path ends here.
        """
        from scipy.optimize import minimize  # on first use: 0.2 s

        self._end_if_reached()
        try:
            minimize(
                self._evaluate,
                np.zeros(self._start.size),
                jac=True,
                method="L-BFGS-B",
                # The path ends at the gradient in A; L-BFGS itself only where F stands still.
                options={
                    "maxcor": HISTORY,
                    "maxiter": self._most,
                    "maxfun": self._most + 1,
                    "ftol": 0.0,
                    "gtol": 0.0,
                },
            )
        except _CurvatureChanged:
            self._begin_at_best()
            return True
        return False

    def polish(self) -> None:
        """Newton-Krylov steps on the gradient from the best point.

        Raises:
            _Reached: the path ends here.
        """
        from scipy.optimize import NoConvergence, newton_krylov

        self._begin_at_best()
        # The coordinates stay.
        self._next_look = self._most
        size = float(np.linalg.norm(self._space.pull_back(self.best.G)))

        def gradient(x: Float) -> Float:
            found = self._evaluate(x)[1]
            # Where the loss is not defined the gradient is 0: no root, the line search turns back.
            return found if found.any() else np.full_like(found, size)

        with contextlib.suppress(NoConvergence, ValueError):
            newton_krylov(
                gradient,
                np.zeros(self._start.size),
                maxiter=NEWTON_STEPS,
                f_tol=np.finfo(float).tiny,
            )

    def result(self) -> MinimiserResult:
        """The best point."""
        best = self.best
        converged = best.gradient <= self._tolerance
        return MinimiserResult(
            best.A, best.loss, best.damped, best.gradient, self._evaluations, converged
        )

    def _begin_at_best(self) -> None:
        """Coordinates around the best point."""
        self._base = self.best
        self._space = _Coordinates.of(self._start.shape, self._damping, self._known)

    def _evaluate(self, x: Float) -> tuple[float, Float]:
        """F and its gradient at flat coordinates.

        Raises:
            _CurvatureChanged: the coordinates are no longer good ones.
            _Reached: the path ends here.
        """
        # Where the coordinates begin they are known.
        if not x.any():
            return self._base.damped, self._space.pull_back(self._base.G)
        self._look_at_model()
        point = self._point(self._base.A + self._space.change(x))
        if not np.isfinite(point.damped):
            # Where the loss is not defined, such as at a variance of 0, the line search turns back.
            self._end_if_reached()
            return self.best.damped + TURN_BACK * (1.0 + abs(self.best.damped)), np.zeros_like(x)
        if point.is_better(self.best):
            self.best = point
        self._end_if_reached()
        return point.damped, self._space.pull_back(point.G)

    def _look_at_model(self) -> None:
        if self._model is None or self._known is None or self._evaluations < self._next_look:
            return
        if self._objective.rotation_invariant:
            return
        self._interval *= GROWTH
        self._next_look += int(self._interval)
        found = self._model(self.best.at)
        Q, known = (U * q @ U.T for q, U in (found.right, self._known.right))
        if np.linalg.norm(Q - known) > CHANGE * np.linalg.norm(Q):
            self._known = found
            raise _CurvatureChanged

    def _point(self, A: Float) -> _Point:
        if self._check is not None:
            self._check()
        self._evaluations += 1
        change = A - self._start
        with np.errstate(all="ignore"):
            at = self._objective.linearise(A)
        loss = float(at.value)
        damped = loss + self._damping / 2.0 * float(np.sum(change * change))
        G = at.gradient + self._damping * change
        return _Point(A, at, loss, damped, G, float(np.linalg.norm(G)) / self._first_norm)

    def _end_if_reached(self) -> None:
        if self.best.gradient <= self._tolerance or self._evaluations >= self._most:
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
