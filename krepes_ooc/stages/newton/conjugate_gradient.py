"""Preconditioned conjugate gradients for several damped systems that share their products.

The method is independent of how products are computed. Several dampings, and right-hand sides,
are columns of one solve: they share every product, hence every pass over the data. A solve that
does not converge is a result with advice, never an exception. All arrays are on the device of the
right-hand side; an iteration transfers nothing to the host but the indices of active columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array, asarray_like, dots, put_columns, take_columns

Operator = Callable[[Array], Array]
Mask = Any  # booleans, on the device of the arrays
Counts = Any  # integers, on the device of the arrays


class Preconditioner(Protocol):
    """An approximate inverse of H + damping I for every damping."""

    def apply(self, R: Array, damping: Array) -> Array:
        """M^(-1) R for R [landmark, component, column] and damping [column]."""


@dataclass(frozen=True)
class Solution:
    """Solution of damped systems; one column for each damping or right-hand side.

    A system of one column given without column axis has a solution without column axis.

    Args:
        step: X [landmark, component, column].
        converged: whether the true residual is within the tolerance [column].
        image: H X, from the products that recompute the residual at the end, so that the model's
            decrease costs no further product [landmark, component, column].
        relative_residual: |R - (H + damping I) X| / |R|, recomputed at the end [column].
        iterations: products that the column took part in [column].
        residual: relative residual that the recursion saw [iteration, column].
        advice: empty, or what to do about columns that did not converge.
    """

    step: Array
    image: Array
    converged: Mask
    relative_residual: Array
    iterations: Counts
    residual: Array
    advice: str = ""


@dataclass(frozen=True)
class CGState:
    """Conjugate gradients between two iterations: save it, and the solve can go on from it.

    Args:
        step: X [landmark, component, column].
        residual: R, updated by the recursion.
        direction: P, where the next iteration searches.
        rz: <R, M^(-1) R> [column]; 0 stops a column.
        relative: |R| / |rhs| as the recursion sees it [column].
        verified: the last true relative residual, infinity before the first [column].
        used: products that the column took part in [column].
        history: ``relative`` after each iteration [iteration, column].
    """

    step: Array
    residual: Array
    direction: Array
    rz: Array
    relative: Array
    verified: Array
    used: Counts
    history: Array


def conjugate_gradient(
    product: Operator,
    rhs: Array,
    damping: npt.ArrayLike,
    *,
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
    guess: Array | None = None,
    state: CGState | None = None,
    checkpoint: Callable[[CGState], None] | None = None,
) -> Solution:
    """Solve (H + damping I) X = R by preconditioned conjugate gradients (Hestenes, Stiefel 1952).

    Columns share each product and stop one by one. When the recursion says that all are done, the
    true residual is computed; a column that is not within the tolerance restarts from it, as long
    as that at least halves it.

    Args:
        product: V -> H V for V [landmark, component, column], H symmetric and >= 0.
        rhs: R [landmark, component] for all dampings, or [landmark, component, column].
        damping: lambda > 0, one number or one for each column; on the host.
        preconditioner: ``apply(R, damping)``, near the inverse of H + damping I.
        tolerance: largest allowed |residual| / |R|, per column.
        max_iterations: largest number of iterations, one product each.
        guess: first iterate, shaped like the step (default 0).
        state: last state that an earlier solve of the same system passed to ``checkpoint``; the
            solve resumes from it, bit for bit as if it had not been interrupted.
        checkpoint: called with the state after every product that led to a new one.

    Raises:
        ValueError: a damping is not positive, or the shapes do not belong together.
    """
    xp = array_namespace(rhs)
    single_column = rhs.ndim == 2 and is_scalar(damping)
    # One right-hand side and one damping for every column.
    columns = rhs if rhs.ndim == 3 else rhs[..., None]
    system = _System(product, *_broadcast_columns(columns, as_dampings(damping)), preconditioner)
    rhs = system.rhs
    if state is None:
        start = xp.zeros_like(rhs) if guess is None else xp.reshape(guess, rhs.shape)
        state = system.begin(start, guess is not None)
    image = xp.zeros_like(rhs)
    restart = True
    while restart:
        # Iterate until the recursion reports convergence of every column.
        while _below(state, max_iterations) and (active := _active(state, tolerance)).size:
            state = system.advance(state, active)
            if checkpoint is not None:
                checkpoint(state)
        # The recursion drifts from the true residual R - (H + lambda I) X: compute that, and
        # restart the columns where it is still too large.
        image = product(state.step)
        state, restart = system.verify(state, image, tolerance)
        if restart and checkpoint is not None:
            checkpoint(state)
    solution = Solution(
        step=state.step,
        image=image,
        converged=state.verified <= tolerance,
        relative_residual=state.verified,
        iterations=state.used,
        residual=state.history,
        advice=_advice(state, tolerance),
    )
    return without_columns(solution) if single_column else solution


@dataclass(frozen=True)
class _System:
    """One damped system per column: (H + shift I) X = R."""

    product: Operator
    rhs: Array
    shifts: Array
    preconditioner: Preconditioner | None

    def begin(self, step: Array, guessed: bool) -> CGState:
        """The state before the first iteration, at X = step; X = 0 costs no product."""
        # R_0 = R - (H + lambda I) X_0, Z_0 = M^(-1) R_0, P_0 = Z_0.
        R = residual_of(self.product(step), self.rhs, self.shifts, step) if guessed else self.rhs
        Z = self._precondition(R, self.shifts)
        xp = array_namespace(R)
        (columns,) = self.shifts.shape
        placement = device(R)
        return CGState(
            step=step,
            residual=R,
            direction=Z,
            rz=dots(R, Z),
            relative=norms(R) / rhs_norm(self.rhs),
            verified=xp.full(columns, math.inf, dtype=xp.float64, device=placement),
            used=xp.zeros(columns, dtype=xp.int64, device=placement),
            history=xp.empty((0, columns), dtype=xp.float64, device=placement),
        )

    def advance(self, state: CGState, active: Counts) -> CGState:
        """One iteration of the active columns; the others keep their bits."""
        xp = array_namespace(state.rz)
        P = take_columns(state.direction, active)
        rz = take_columns(state.rz, active)
        shifts = take_columns(self.shifts, active)
        # Q = (H + lambda I) P.
        Q = self.product(P) + shifts * P
        curvature = dots(P, Q)
        # Not positive (or NaN): rounding has taken over; the column stops with alpha = 0.
        positive = curvature > 0
        # alpha = <R, Z> / <P, Q>.
        alpha = xp.where(positive, rz, 0.0) / xp.where(positive, curvature, 1.0)
        # X <- X + alpha P,  R <- R - alpha Q.
        X = take_columns(state.step, active) + alpha * P
        R = take_columns(state.residual, active) - alpha * xp.where(positive, Q, 0.0)
        # Z = M^(-1) R and beta = <R, Z>_next / <R, Z>; the next direction is Z + beta P.
        Z = self._precondition(R, shifts)
        rz_next = xp.where(positive, xp.maximum(dots(R, Z), 0.0), 0.0)
        # |R| / |rhs| of the recursion decides which columns stay active.
        relative_residual = norms(R) / rhs_norm(take_columns(self.rhs, active))
        relative = put_columns(state.relative, active, relative_residual)
        return CGState(
            step=put_columns(state.step, active, X),
            residual=put_columns(state.residual, active, R),
            direction=put_columns(state.direction, active, Z + rz_next / rz * P),
            rz=put_columns(state.rz, active, rz_next),
            relative=relative,
            verified=state.verified,
            used=put_columns(state.used, active, take_columns(state.used, active) + 1),
            history=xp.concat([state.history, relative[None, :]]),
        )

    def verify(self, state: CGState, image: Array, tolerance: float) -> tuple[CGState, bool]:
        """True residuals from the image H X; restart the columns that stopped too early.

        Returns:
            The state with true residuals, and whether a column was restarted.
        """
        R = residual_of(image, self.rhs, self.shifts, state.step)
        true = norms(R) / rhs_norm(self.rhs)
        # Too early: the recursion says converged, the true residual does not. Halving it since the
        # last check is the condition to try again: below that, products are too inexact.
        early = (true > tolerance) & (state.relative <= tolerance) & (2 * true < state.verified)
        xp = array_namespace(early)
        (restarted,) = xp.nonzero(early)
        if not restarted.size:
            return replace(state, verified=true), False
        # Steepest descent from the true residual: P = Z = M^(-1) R.
        R_restarted = take_columns(R, restarted)
        Z = self._precondition(R_restarted, take_columns(self.shifts, restarted))
        state_restarted = replace(
            state,
            residual=put_columns(state.residual, restarted, R_restarted),
            direction=put_columns(state.direction, restarted, Z),
            rz=put_columns(state.rz, restarted, dots(R_restarted, Z)),
            relative=xp.where(early, true, state.relative),
            verified=true,
        )
        return state_restarted, True

    def _precondition(self, R: Array, shifts: Array) -> Array:
        return R if self.preconditioner is None else self.preconditioner.apply(R, shifts)


def _broadcast_columns(rhs: Array, shifts: npt.NDArray[np.float64]) -> tuple[Array, Array]:
    """Right-hand sides and dampings, one of each for every column, on the device of the first.

    Raises:
        ValueError: their numbers do not belong together.
    """
    if rhs.shape[-1] != len(shifts) and 1 not in (rhs.shape[-1], len(shifts)):
        raise ValueError(f"{rhs.shape[-1]} right-hand sides for {len(shifts)} dampings")
    columns = asarray_like(shifts + np.zeros(rhs.shape[-1]), rhs)
    return rhs + array_namespace(columns).zeros_like(columns), columns


def _below(state: CGState, max_iterations: int) -> bool:
    return int(state.history.shape[0]) < max_iterations


def _active(state: CGState, tolerance: float) -> Counts:
    """Indices of the columns that iterate; the host waits for them."""
    active = (state.relative > tolerance) & (state.rz > 0)
    return array_namespace(active).nonzero(active)[0]


def _advice(state: CGState, tolerance: float) -> str:
    """Advice for the columns that did not converge; empty if all did."""
    any_column = array_namespace(state.rz).any
    missed = state.verified > tolerance
    if not any_column(missed):
        return ""
    # The recursion converged, the true residual did not.
    if any_column(missed & (state.relative <= tolerance)):
        return "products are too inexact for this tolerance: loosen it or raise the damping"
    # <R, M^(-1) R> was set to 0: no positive curvature along the direction.
    if any_column(missed & (state.rz <= 0)):
        return "the curvature lost its sign to rounding: raise the damping"
    return "raise max_iterations or the damping, or take another preconditioner"


def is_scalar(damping: npt.ArrayLike) -> bool:
    """Whether a single damping is given, so that the solution has no column axis."""
    return np.ndim(damping) == 0


def as_dampings(damping: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Dampings as an array [column] of the host.

    Raises:
        ValueError: one of them is not positive.
    """
    shifts = np.atleast_1d(np.asarray(damping, dtype=np.float64))
    if not (shifts > 0).all():
        raise ValueError(f"damping {shifts.min():g}, expected positive numbers")
    return shifts


def residual_of(image: Array, rhs: Array, shifts: Array, step: Array) -> Array:
    """R - (H + shift I) X for the image H X."""
    return rhs - image - shifts * step


def norms(X: Array) -> Array:
    """Frobenius norm of each column of X [landmark, component, column]."""
    return array_namespace(X).sqrt(dots(X, X))


def rhs_norm(rhs: Array) -> Array:
    """|R| of each column; 1 for R = 0, whose solution 0 has residual 0."""
    size = norms(rhs)
    return array_namespace(size).where(size > 0, size, 1.0)


def without_columns(solution: Solution) -> Solution:
    """The solution of a system of one column, its column axis removed."""
    return Solution(
        step=solution.step[..., 0],
        image=solution.image[..., 0],
        converged=solution.converged[0],
        relative_residual=solution.relative_residual[0],
        iterations=solution.iterations[0],
        residual=solution.residual[:, 0],
        advice=solution.advice,
    )
