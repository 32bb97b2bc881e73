"""The damped minimiser: coefficients that minimise L(A) + (lambda / 2) |A - A0|^2, from A0.

Limited-memory BFGS (Nocedal 1980) whose initial inverse Hessian is that of the damped Kronecker
model S (x) Q of the curvature at A0. The model of all samples serves every group: a group changes
the moments a little, and what it changes is learned from the gradients. Each trial costs one
gradient, a few products of an m x m moment with m x h coefficients, and no pass over the data.
Levenberg-Marquardt steps with the Gauss-Newton curvature, whose left-out part is large for these
losses, reach a higher loss: Barlow Twins on digits, relative damping .3, 1.54 after 200 accepted
steps against 1.22 after 100 here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.interface import Gradient, Linearisation
from krepes_ooc.stages.newton.preconditioners import Kronecker

TOLERANCE, MAX_STEPS = 1e-6, 100
MEMORY, MAX_TRIALS = 20, 30
# Armijo's and Wolfe's constants.
DECREASE, SLOPE = 1e-4, 0.9
# Curvature of a pair that is kept, and values that are equal up to rounding; both relative.
ROUNDING, LEVEL = 1e-14, 1e-13
Float = npt.NDArray[np.float64]
Inverse = Callable[[Float], Float]


class Loss(Protocol):
    """A loss of coefficients that is known by its value and gradient."""

    def linearise(self, A: Float) -> Gradient:
        """Value and gradient at A [landmark, component]."""


@dataclass(frozen=True)
class Minimum:
    """End point of a minimisation.

    Args:
        coefficients: A [landmark, component].
        steps: accepted steps.
        gradient_norm: gradient of the damped objective at the end over that at the start.
        loss: L(A), without the damping term.
        reason: what ended it.
    """

    coefficients: Float
    steps: int
    gradient_norm: float
    loss: float
    reason: str

    @property
    def converged(self) -> bool:
        """Whether the gradient reached the tolerance."""
        return self.reason == "converged"


@dataclass(frozen=True)
class _Point:
    """The damped objective at some coefficients."""

    A: Float
    value: float
    gradient: Float
    loss: float


@dataclass(frozen=True)
class DampedLoss:
    """L(A) + (lambda / 2) |A - A0|^2.

    Args:
        objective: L.
        start: A0 [landmark, component].
        damping: lambda.
    """

    objective: Loss
    start: Float
    damping: float

    def at(self, A: Float) -> _Point:
        """Value and gradient at A [landmark, component]."""
        found, moved = self.objective.linearise(A), A - self.start
        loss = float(found.value)
        value = loss + self.damping / 2 * float(np.sum(moved * moved))
        return _Point(A, value, np.asarray(found.gradient) + self.damping * moved, loss)


def minimise(
    objective: Loss,
    start: Float,
    damping: float,
    inverse: Inverse,
    *,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
    check: Callable[[], None] = lambda: None,
) -> Minimum:
    """Minimise L(A) + (lambda / 2) |A - A0|^2 from A0.

    Args:
        objective: the loss L.
        start: A0 [landmark, component].
        damping: lambda, above 0.
        inverse: R -> M^(-1) R, M near the curvature at A0 plus lambda, symmetric positive definite.
        tolerance: gradient at the end, relative to the start.
        max_steps: accepted steps at most.
        check: called before every step; may raise to stop.

    Raises:
        ValueError: the damping is not positive.
    """
    if not damping > 0:
        raise ValueError(f"damping {damping:g}, expected a positive number")
    loss, pairs = DampedLoss(objective, start, damping), _Pairs(inverse)
    here = loss.at(start)
    first = float(np.linalg.norm(here.gradient))
    steps, reason = 0, "converged" if first == 0 else ""
    while not reason:
        check()
        direction = -pairs.apply(here.gradient)
        found = _line_search(loss, here, direction)
        if found is None and pairs.steps:
            # What was learned misleads: go on from the curvature at the start.
            pairs = _Pairs(inverse)
            continue
        if found is None:
            reason = "no step lowers the objective beyond rounding"
            break
        pairs.learn(found.A - here.A, found.gradient - here.gradient)
        here, steps = found, steps + 1
        if np.linalg.norm(here.gradient) <= tolerance * first:
            reason = "converged"
        elif steps >= max_steps:
            reason = f"{max_steps} steps taken"
    relative = float(np.linalg.norm(here.gradient)) / first if first else 0.0
    return Minimum(here.A, steps, relative, here.loss, reason)


@dataclass(frozen=True)
class CurvatureInverse:
    """(S (x) Q + lambda I)^(-1), the Kronecker model of the curvature.

    Args:
        model: of the curvature at the start on the moments of all samples.
        damping: lambda.
    """

    model: Kronecker
    damping: float

    @classmethod
    def build(cls, at_start: Linearisation, moments: Moments, damping: float) -> CurvatureInverse:
        """Two eigendecompositions."""
        return cls(Kronecker.build(at_start, moments), damping)

    def __call__(self, R: Float) -> Float:
        """M^(-1) R for R [landmark, component]."""
        return np.asarray(self.model.apply(R[..., None], np.array([self.damping]))[..., 0])


@dataclass
class _Pairs:
    """The last steps s and changes y of the gradient: the inverse Hessian by two loops."""

    inverse: Inverse
    steps: list[Float] = field(default_factory=list)
    changes: list[Float] = field(default_factory=list)
    scale: float = 1.0

    def learn(self, s: Float, y: Float) -> None:
        """Keep a pair of positive curvature; only these keep the inverse positive definite."""
        curvature = float(np.sum(s * y))
        if not curvature > ROUNDING * float(np.linalg.norm(s) * np.linalg.norm(y)):
            return
        self.steps = [*self.steps, s][-MEMORY:]
        self.changes = [*self.changes, y][-MEMORY:]
        self.scale = curvature / float(np.sum(y * self.inverse(y)))

    def apply(self, gradient: Float) -> Float:
        """The inverse Hessian times a gradient [landmark, component]."""
        q, weights = gradient.copy(), []
        pairs = list(zip(self.steps, self.changes, strict=True))
        for s, y in reversed(pairs):
            weight = float(np.sum(s * q) / np.sum(s * y))
            weights.append(weight)
            q -= weight * y
        r = self.scale * self.inverse(q)
        for (s, y), weight in zip(pairs, reversed(weights), strict=True):
            r += (weight - float(np.sum(y * r) / np.sum(s * y))) * s
        return r


def _line_search(loss: DampedLoss, here: _Point, direction: Float) -> _Point | None:
    """A point along the direction that meets Wolfe's weak conditions, by bisection; None: none.

    Near the minimum, where values are equal up to rounding, the slope decides (Hager, Zhang 2005).
    """
    slope = float(np.sum(here.gradient * direction))
    if not slope < 0:
        return None
    low, high, length = 0.0, np.inf, 1.0
    best: _Point | None = None
    for _ in range(MAX_TRIALS):
        found = loss.at(here.A + length * direction)
        along = float(np.sum(found.gradient * direction))
        if not _lowers(found, here, length * slope, along <= (2 * DECREASE - 1) * slope):
            high = length
        elif along < SLOPE * slope:
            low, best = length, found
        else:
            return found
        length = (low + high) / 2 if np.isfinite(high) else 2 * low
    return best


def _lowers(found: _Point, here: _Point, promised: float, before: bool) -> bool:
    """Whether a point keeps a share of the promised decrease, or is level and not past the minimum.

    Args:
        found: the point.
        here: where the search starts.
        promised: decrease along the slope, below 0.
        before: whether the slope at the point is not steeper upwards than it was downwards.
    """
    if not np.isfinite(found.value) or not np.isfinite(found.gradient).all():
        return False
    if found.value <= here.value + DECREASE * promised:
        return True
    return before and found.value <= here.value + LEVEL * max(1.0, abs(here.value))


def damping_of(relative: float, at_start: Gradient) -> float:
    """Lambda for a damping relative to the mean diagonal tr(H) / (m h) at the start."""
    return relative * float(cast(Any, at_start.mean_diagonal))
